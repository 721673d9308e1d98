"""As much of the Hugging Face hub as a download uses, on this machine, with switches for what can go wrong."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import threading
import urllib.parse


class FakeHub:
    """A hub and, on another port, the storage that it redirects to for large files."""

    def __init__(self):
        self.repositories = {}
        self.requests = []
        self.gated = set()
        self.accepted_token = None
        self.breaks = []  # after how many bytes the next answers with a large file break off
        self.stall_after = None
        self.silent = False
        self.ignore_ranges = False
        self.served = {}  # name -> what is sent instead of what is announced
        self.info = None
        self.status = None
        self.released = threading.Event()
        self._servers = [self._serve("hub"), self._serve("cdn")]
        self.url, self.cdn_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)

    def _serve(self, role):
        handler = type("Handler", (Handler,), {"hub": self, "role": role})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return server

    def close(self):
        self.released.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def publish(self, repository, files, branch="main"):
        commit = hashlib.sha1(repr((repository, sorted(files.items()))).encode()).hexdigest()
        versions = self.repositories.setdefault(repository, {})
        versions[branch] = versions[commit] = (commit, files)
        return commit

    def files_sent(self):
        return [request for request in self.requests if request["path"].count("/resolve/") and request["sent"]]

    def sent(self, name):
        return [request for request in self.files_sent() if request["path"].endswith(f"/{name}")]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Otherwise each answer waits 40 ms for the client to acknowledge its headers.
    disable_nagle_algorithm = True

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        self.record = {
            "role": self.role, "path": path, "range": self.headers.get("Range"),
            "authorization": self.headers.get("Authorization"),
            "encoding": self.headers.get("Accept-Encoding"), "sent": 0,
        }  # fmt: skip
        if "/agent-harnesses" in path:
            return self.answer(404)
        self.hub.requests.append(self.record)
        if self.hub.silent and "/resolve/" in path:
            self.close_connection = True
            return None
        with contextlib.suppress(ConnectionError):
            return self.answer_info(path) if path.startswith("/api/") else self.answer_file(path)

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def answer_info(self, path):
        if self.hub.status:
            return self.answer(self.hub.status)
        if self.hub.info is not None:
            return self.answer(200, self.hub.info)
        repository, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        versions = self.hub.repositories.get(repository)
        if versions is None:
            return self.answer(404, X_Error_Code="RepoNotFound")
        if (revision or "main") not in versions:
            return self.answer(404, X_Error_Code="RevisionNotFound")
        commit, files = versions[revision or "main"]
        siblings = [self.sibling(name, data) for name, data in files.items()]
        body = {"id": repository, "sha": commit, "siblings": siblings}
        return self.answer(200, json.dumps(body).encode(), Content_Type="application/json")

    @staticmethod
    def sibling(name, data):
        blob = hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()
        sibling = {"rfilename": name, "size": len(data), "blobId": blob}
        if len(data) > 100_000:
            sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        return sibling

    def answer_file(self, path):
        repository, _, rest = path[1:].partition("/resolve/")
        commit, _, name = rest.partition("/")
        data = self.hub.repositories[repository][commit][1][name]
        is_large = len(data) > 100_000
        if self.role == "hub" and repository in self.hub.gated:
            authorization = self.record["authorization"]
            if authorization is None:
                return self.answer(401, X_Error_Code="GatedRepo")
            if self.hub.accepted_token is None:
                return self.answer(401, X_Error_Message="Invalid credentials in Authorization header")
            if authorization != f"Bearer {self.hub.accepted_token}":
                return self.answer(403, X_Error_Code="GatedRepo")
        if self.role == "hub" and is_large:
            return self.answer(302, Location=f"{self.hub.cdn_url}{self.path}")
        return self.send_file(self.hub.served.get(name, data), is_large)

    def send_file(self, data, is_large):
        start = int(self.record["range"].removeprefix("bytes=").rstrip("-")) if self.record["range"] else 0
        if self.hub.ignore_ranges:
            start = 0
        elif start and start >= len(data):
            return self.answer(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        data = data[start:]
        if is_large and self.hub.breaks:
            data = data[: self.hub.breaks.pop(0)]
            self.close_connection = True
        if is_large and self.hub.stall_after is not None:
            self.wfile.write(data[: self.hub.stall_after])
            self.wfile.flush()
            self.hub.released.wait(30)
            self.close_connection = True
            return None
        self.wfile.write(data)
        self.record["sent"] = len(data)
        return None
