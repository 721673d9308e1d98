"""The Hugging Face hub: who is asked and with which token, what a repository holds, and one file received whole.

huggingface_hub transfers. Its `hf_hub_download` no longer goes on with what an interrupted process left behind, so the
file under way is kept here and `http_get` is told where to go on.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from autodistill_sam3 import __version__
from autodistill_sam3.download.files import GIT_BLOB, SHA256, RemoteFile, Source, digest_file, is_same, size_of
from autodistill_sam3.download.refusals import explain_status, explain_transport
from autodistill_sam3.errors import AccessError, DownloadError, SettingError

logger = logging.getLogger("autodistill_sam3")

_OFFICIAL = "https://huggingface.co"
_TOKEN = re.compile(r"[!-~]+")
_DIGEST = {SHA256: re.compile(r"[0-9a-f]{64}"), GIT_BLOB: re.compile(r"[0-9a-f]{40}")}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Hub:
    """Where requests go, and as whom.

    Attributes:
        endpoint: The URL of the hub or of a mirror.
        token: What is sent along; never shown.
        why_no_token: Why nothing is sent, for the message when access is refused.
    """

    endpoint: str
    token: str | None = field(repr=False)
    why_no_token: str = ""

    @property
    def host(self) -> str:
        """The host, without what else a URL may hold."""
        return _host(self.endpoint)


def connect_hub(*, token_to_endpoint: bool) -> Hub:
    """The hub as the environment has it: `HF_ENDPOINT`, `HF_TOKEN` or the token of `hf auth login`.

    Args:
        token_to_endpoint: Send the token to any endpoint, not only to huggingface.co.

    Raises:
        DownloadError: The environment says offline.
        SettingError: `HF_ENDPOINT` is no URL.
        AccessError: The token cannot be read, or is none.
    """
    require_online()
    from huggingface_hub import constants

    endpoint = _checked_endpoint(constants.ENDPOINT)
    is_official = endpoint == _OFFICIAL
    if not is_official and not token_to_endpoint:
        logger.info("No Hugging Face token is sent to %s, which HF_ENDPOINT names", _host(endpoint))
        return Hub(endpoint, None, f"HF_ENDPOINT names {_host(endpoint)}; --token-to-endpoint sends the token there")
    if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN and not token_to_endpoint:
        return Hub(endpoint, None, "HF_HUB_DISABLE_IMPLICIT_TOKEN is set; --token-to-endpoint sends the token anyway")
    if not is_official:
        logger.info("The Hugging Face token is sent to %s, as asked", _host(endpoint))
    return Hub(endpoint, _read_token(), "neither HF_TOKEN nor `hf auth login` has set one")


def require_online() -> None:
    """Check that the environment allows downloads.

    Raises:
        DownloadError: It does not.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise DownloadError(
            "Expected to be allowed to download, received HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) set in the "
            "environment. Unset it, or copy the files from a machine with internet; models/README.md says where to."
        )


def list_files(hub: Hub, source: Source) -> list[RemoteFile]:
    """The files at the top level of a repository, each with its size and hash.

    Raises:
        AccessError: The hub does not show the repository.
        DownloadError: It has none such, no such revision, cannot be reached, or does not tell what is needed.
    """
    from huggingface_hub import HfApi, constants

    with _explained_requests(hub, source):
        try:
            info = HfApi(endpoint=hub.endpoint).model_info(
                source.repository,
                revision=source.revision,
                files_metadata=True,
                timeout=constants.HF_HUB_ETAG_TIMEOUT,
                token=hub.token or False,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise _not_a_hub(hub, source) from error
    commit = info.sha or ""
    if not _COMMIT.fullmatch(commit):
        raise _not_a_hub(hub, source)
    siblings = info.siblings or []
    return [_remote_file(hub, source, commit, sibling) for sibling in siblings if _is_plain(sibling.rfilename)]


def fetch(hub: Hub, file: RemoteFile, part: Path, *, progress: bool) -> None:
    """Receive a file, going on where an earlier attempt ended, and verify it.

    Args:
        hub: Where from.
        file: What.
        part: Where to. Kept when the connection breaks, removed when the content is wrong.
        progress: Show a bar on a terminal.

    Raises:
        AccessError: The hub refuses the file.
        DownloadError: The connection broke, or what was received is not the file.
    """
    if size_of(part) > file.size:
        part.unlink()
    with _explained_requests(hub, file.source, part):
        _transfer(hub, file, part, progress)
    if not is_same(part, file):
        received = f"{size_of(part)} bytes with {digest_file(part, file.algorithm)}"
        part.unlink()
        raise DownloadError(
            f"Expected {file.name} of {file.size} bytes with {file.algorithm} {file.digest} from {hub.host}, received "
            f"{received}. It was removed: run the same command again. If that does not help, the server or a proxy "
            "before it alters the file."
        )


def _transfer(hub: Hub, file: RemoteFile, part: Path, progress: bool) -> None:
    """Ask until all is there; an attempt that brought nothing new is the last."""
    from huggingface_hub.errors import HfHubHTTPError
    from huggingface_hub.file_download import http_get

    keywords = _request(hub, file, progress)
    while True:
        before = size_of(part)
        try:
            with part.open("ab") as stream:
                http_get(temp_file=stream, resume_size=before, **keywords)
                stream.flush()
                os.fsync(stream.fileno())
            return
        except HfHubHTTPError:
            raise
        except (_http_error(), OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            if size_of(part) <= before:
                raise
            if size_of(part) > file.size:
                return  # more than there should be: verifying it says so
            logger.debug("%s: %s; going on after %d bytes", file.name, type(error).__name__, size_of(part))


def _request(hub: Hub, file: RemoteFile, progress: bool) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url
    from huggingface_hub import utils as untyped

    utils: Any = untyped

    def hidden_bar(**keywords: Any) -> Any:
        return utils.tqdm(**{**keywords, "disable": True})

    headers = utils.build_hf_headers(
        token=hub.token or False, library_name="autodistill-sam3", library_version=__version__
    )
    return {
        "url": hf_hub_url(file.source.repository, file.name, revision=file.commit, endpoint=hub.endpoint),
        # Compressed on the way, sizes and ranges would be those of another sequence of bytes.
        "headers": {**headers, "accept-encoding": "identity"},
        "expected_size": file.size,
        "displayed_filename": file.name,
        "tqdm_class": None if progress else hidden_bar,
    }


@contextmanager
def _explained_requests(hub: Hub, source: Source, part: Path | None = None) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    no_token = "" if hub.token else hub.why_no_token
    try:
        yield
    except HfHubHTTPError as error:
        # There is nothing after what was received: it was not a part of this file.
        if error.response.status_code == 416 and part is not None:
            part.unlink(missing_ok=True)
        raise explain_status(error, hub.host, source, no_token) from error
    except _http_error() as error:
        raise explain_transport(error, hub.host) from error
    except ValueError as error:
        raise _not_a_hub(hub, source) from error
    except OSError as error:
        # huggingface_hub's own checks have no number; those with one are the disk's.
        if isinstance(error, DownloadError) or error.errno is not None:
            raise
        raise explain_transport(error, hub.host) from error


def _http_error() -> type[Exception]:
    """The base class of errors on the way: httpx's up to huggingface_hub 1, httpx2's since."""
    from huggingface_hub import errors as untyped

    errors: Any = untyped
    base: type[Exception] = errors.HTTPError
    return base


def _checked_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        shown = endpoint.rpartition("@")[2]
        raise SettingError(f"Expected HF_ENDPOINT to be a URL such as {_OFFICIAL}, received {shown!r}.")
    return endpoint.rstrip("/")


def _read_token() -> str | None:
    from huggingface_hub import get_token

    try:
        token = get_token()
    # Tokens come from files, vaults and identity providers, each with errors of its own.
    except Exception as error:
        raise AccessError(f"The Hugging Face token cannot be read: {error}. Run `hf auth login` again.") from error
    # An unusable character would make the HTTP library fail with a message that quotes the token.
    if token is not None and not _TOKEN.fullmatch(token):
        raise AccessError(
            "Expected a Hugging Face token of plain visible characters, received one with others (its value is not "
            "shown). Set HF_TOKEN again, or run `hf auth login`."
        )
    return token


def _remote_file(hub: Hub, source: Source, commit: str, sibling: Any) -> RemoteFile:
    lfs = sibling.lfs
    algorithm, digest, size = (SHA256, lfs.sha256, lfs.size) if lfs else (GIT_BLOB, sibling.blob_id, sibling.size)
    if not isinstance(size, int) or not _DIGEST[algorithm].fullmatch(str(digest)):
        raise _not_a_hub(hub, source)
    return RemoteFile(source, commit, sibling.rfilename, size, algorithm, digest)


def _is_plain(name: str) -> bool:
    """Whether a name can only be a file of the folder that it is put in, on any system."""
    return not set(name) & set("/\\:") and name not in ("", ".", "..")


def _not_a_hub(hub: Hub, source: Source) -> DownloadError:
    return DownloadError(
        f"Expected {hub.host} to tell the commit, and the size and hash of every file, of {source.repository}, "
        "received something else, so nothing from there can be verified. Unset HF_ENDPOINT to use huggingface.co."
    )


def _host(endpoint: str) -> str:
    return urlsplit(endpoint).netloc.rpartition("@")[2]
