"""Downloads from a hub on this machine that refuses, breaks off, lies and redirects."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest
from fake_hub import FakeHub
from huggingface_hub import close_session, constants

from autodistill_sam3 import AccessError, DownloadError, SettingError
from autodistill_sam3.download import FORMATS, NAMES, download
from autodistill_sam3.download.hub import connect_hub

SAM3, SAM3_1 = "facebook/sam3", "facebook/sam3.1"
LARGE, BASE = "florence-community/Florence-2-large", "florence-community/Florence-2-base"
TOKEN = "hf_thisMustNeverBeShown"
WEIGHTS = "model.safetensors"
SMALL = ("config.json", "tokenizer.json", "vocab.json", "merges.txt", "LICENSE")


def content(seed, size):
    return hashlib.shake_256(seed.encode()).digest(size)


def repository_files(name, big=(WEIGHTS,)):
    files = {large: content(f"{name}/{large}", 300_000) for large in big}
    files |= {small: content(f"{name}/{small}", 900) for small in SMALL}
    return files | {
        "README.md": b"card",
        ".gitattributes": b"*",
        "evil.py": b"raise SystemExit",
        "sub/config.json": b"{}",
    }


@pytest.fixture
def fake_hub():
    server = FakeHub()
    for repository, big in ((SAM3, (WEIGHTS, "sam3.pt")), (SAM3_1, ("sam3.1_multiplex.pt",))):
        server.publish(repository, repository_files(repository, big))
    for repository in (LARGE, BASE):
        server.publish(repository, repository_files(repository))
    yield server
    server.close()


@pytest.fixture
def hub(fake_hub, monkeypatch, tmp_path):
    """The fake hub as `HF_ENDPOINT`, which huggingface_hub reads when it is imported."""
    monkeypatch.setattr(constants, "ENDPOINT", fake_hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake_hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        monkeypatch.setattr(constants, name, False)
    for name in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "AGENT_HARNESSES_PATH"):
        monkeypatch.setattr(constants, name, str(tmp_path / "hf" / name), raising=False)
    # What is not yet a whole chunk when the connection breaks is lost.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    monkeypatch.setattr("huggingface_hub.file_download.time", types.SimpleNamespace(sleep=lambda seconds: None))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    close_session()
    yield fake_hub
    close_session()


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


def get(name, models, **keywords):
    return download(name, output=models, progress=False, **keywords)


def files_in(folder):
    """What can be seen: not the staging area."""
    paths = folder.rglob("*") if folder.is_dir() else ()
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in paths
        if path.is_file() and ".download" not in path.parts
    }


def parts_in(folder):
    return [path for path in folder.rglob("*.part") if path.is_file()]


def expected(hub, repository, names=(*SMALL, WEIGHTS), version="main"):
    return {name: hub.repositories[repository][version][1][name] for name in names}


def assert_whole(hub, folder, repository=SAM3):
    assert files_in(folder) == expected(hub, repository)
    assert sorted(path.name for path in (folder / ".download").iterdir()) == ["lock", "record.json"]


@pytest.mark.parametrize(
    ("name", "repository", "folder"),
    [("sam3", SAM3, "sam3"), ("florence2", LARGE, "florence2"), ("florence2-base", BASE, "florence2")],
)
def test_whole_checkpoint(hub, models, name, repository, folder, caplog):
    with caplog.at_level(logging.INFO, "autodistill_sam3"):
        assert get(name, models) == models / folder
    assert_whole(hub, models / folder, repository)
    assert hub.repositories[repository]["main"][0] in caplog.text
    assert {request["encoding"] for request in hub.files_sent()} == {"identity"}
    assert hub.files_sent()[-1:] == hub.sent(WEIGHTS)


def test_meta_file_comes_with_a_tokenizer(hub, models):
    assert get("sam3", models, file_format="pt") == models / "sam3" / "sam3.pt"
    assert files_in(models / "sam3") == expected(hub, SAM3, ("sam3.pt", "tokenizer.json", "LICENSE"))


@pytest.mark.parametrize("has_own", [True, False])
def test_tokenizer_of_3_1(hub, models, has_own):
    name = "sam3.1_multiplex.pt"
    if not has_own:
        hub.publish(SAM3_1, expected(hub, SAM3_1, (name, "LICENSE")))
    assert get("sam3.1", models) == models / "sam3" / name
    tokenizer = expected(hub, SAM3_1 if has_own else SAM3, ("tokenizer.json",))
    assert files_in(models / "sam3") == expected(hub, SAM3_1, (name, "LICENSE")) | tokenizer


@pytest.mark.parametrize("order", [("sam3", "sam3.1"), ("sam3.1", "sam3")])
def test_both_versions_share_a_folder(hub, models, order):
    for name in order:
        get(name, models)
    weights = expected(hub, SAM3_1, ("sam3.1_multiplex.pt",))
    assert files_in(models / "sam3") == expected(hub, SAM3) | weights


def test_revisions(hub, models):
    old = hub.repositories[SAM3]["main"][0]
    hub.publish(SAM3, repository_files("experiment"), branch="refs/pr/1")
    get("sam3", models, revision="refs/pr/1")
    assert files_in(models / "sam3") == expected(hub, SAM3, version="refs/pr/1")
    get("sam3", models, revision=old)
    assert files_in(models / "sam3") == expected(hub, SAM3)


def test_unknown_revision(hub, models):
    with pytest.raises(DownloadError, match=r"facebook/sam3 as --revision, received 'v9'.*/commits/main"):
        get("sam3", models, revision="v9")
    assert not models.exists()


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("sam9", {}, "sam3, sam3.1, florence2, florence2-base, sam3-code"),
        ("sam3.1", {"file_format": "transformers"}, "Expected pt"),
        ("florence2", {"file_format": "pt"}, "Expected transformers"),
        ("sam3-code", {"file_format": "pt"}, "which is code"),
        ("sam3", {"revision": " "}, "revision"),
        ("sam3-code", {"revision": "--upload-pack=touch x"}, "revision"),
    ],
)
def test_wrong_arguments(hub, models, name, keywords, message):
    with pytest.raises(SettingError, match=message):
        get(name, models, **keywords)
    assert not models.exists()
    assert not hub.requests


def test_names_and_formats():
    assert NAMES == ("sam3", "sam3.1", "florence2", "florence2-base", "sam3-code")
    assert FORMATS == ("transformers", "pt")


def test_connection_that_breaks_is_taken_up_again(hub, models):
    hub.breaks = [100_000, 50_000]
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    first, second, third = hub.sent(WEIGHTS)
    assert first["range"] is None
    starts = [int(request["range"].strip("bytes=-")) for request in (second, third)]
    assert 90_000 < starts[0] <= 100_000 and 135_000 < starts[1] <= 150_000


def test_the_next_run_goes_on(hub, models):
    hub.breaks = [120_000] + [0] * 30
    with pytest.raises(DownloadError, match="the same command goes on from there"):
        get("sam3", models)
    assert files_in(models / "sam3") == {}
    hub.breaks, hub.requests = [], []
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    (request,) = hub.files_sent()
    start = int(request["range"].strip("bytes=-"))
    assert 110_000 < start <= 120_000
    assert request["sent"] == 300_000 - start


def test_server_that_ignores_ranges(hub, models):
    hub.breaks, hub.ignore_ranges = [120_000], True
    get("sam3", models)
    assert_whole(hub, models / "sam3")


def test_server_that_goes_away(hub, models):
    hub.silent = True
    with pytest.raises(DownloadError, match=r"connection to 127\.0\.0\.1:\d+ failed.*same command.*HF_ENDPOINT"):
        get("sam3", models)
    hub.silent = False
    get("sam3", models)
    assert_whole(hub, models / "sam3")


def test_server_that_is_not_there(hub, models):
    hub.close()
    with pytest.raises(DownloadError, match="connection"):
        get("sam3", models)
    assert not models.exists()


def test_server_that_stalls(hub, models, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.05)
    hub.stall_after = 0
    with pytest.raises(DownloadError, match="goes on"):
        get("sam3", models)
    assert files_in(models / "sam3") == {}


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
def test_wrong_hash(hub, models, name):
    good = expected(hub, SAM3)[name]
    hub.served[name] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(DownloadError, match=f"(?s)Expected {name} of {len(good)} bytes with .* removed"):
        get("sam3", models)
    assert files_in(models / "sam3") == {}
    assert all(path.read_bytes() != hub.served[name] for path in parts_in(models))
    hub.served.clear()
    get("sam3", models)
    assert_whole(hub, models / "sam3")


@pytest.mark.parametrize("name", [WEIGHTS, "config.json"])
@pytest.mark.parametrize("size", [0.5, 1.5])
def test_other_size_than_announced(hub, models, name, size):
    good = expected(hub, SAM3)[name]
    hub.served[name] = content("other", int(len(good) * size))
    with pytest.raises(DownloadError, match="removed"):
        get("sam3", models)
    assert files_in(models / "sam3") == {}
    hub.served.clear()
    get("sam3", models)
    assert_whole(hub, models / "sam3")


def test_part_longer_than_the_file(hub, models):
    digest = hashlib.sha256(expected(hub, SAM3)[WEIGHTS]).hexdigest()
    stage = models / "sam3" / ".download" / "sam3-transformers"
    stage.mkdir(parents=True)
    (stage / f"{digest}.part").write_bytes(bytes(400_000))
    get("sam3", models)
    assert_whole(hub, models / "sam3")


def test_nothing_is_fetched_twice(hub, models):
    get("sam3", models)
    hub.requests.clear()
    get("sam3", models)
    assert hub.files_sent() == []


def test_a_missing_file_is_added(hub, models):
    get("sam3", models)
    (models / "sam3" / "vocab.json").unlink()
    hub.requests.clear()
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    assert [request["path"].rpartition("/")[2] for request in hub.files_sent()] == ["vocab.json"]


def test_complete_folder_is_not_written_to(hub, models):
    """As in a shared folder that only an administrator can write."""
    (models / "sam3").mkdir(parents=True)
    for name, data in expected(hub, SAM3).items():
        (models / "sam3" / name).write_bytes(data)
    get("sam3", models)
    assert not (models / "sam3" / ".download").exists()


def test_new_revision_replaces_what_was_downloaded(hub, models, monkeypatch):
    get("sam3", models)
    old = expected(hub, SAM3)
    hub.publish(SAM3, old | {WEIGHTS: content("new", 300_000)})
    states = watch_moves(monkeypatch, models / "sam3")
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    assert states[-1] == {"weights": "new", "config": True}
    assert all(not state["config"] for state in states[:-1])
    assert len(hub.sent("config.json")) == 1


def watch_moves(monkeypatch, folder):
    """What a reader would find after each move."""
    old, states, replace = (folder / WEIGHTS).read_bytes(), [], Path.replace

    def watched(source, target):
        result = replace(source, target)
        if not source.name.endswith(".tmp"):
            weights = "old" if (folder / WEIGHTS).read_bytes() == old else "new"
            states.append({"weights": weights, "config": (folder / "config.json").exists()})
        return result

    monkeypatch.setattr(Path, "replace", watched)
    return states


@pytest.mark.parametrize("moves", range(6))
@pytest.mark.parametrize("is_update", [False, True])
def test_killed_while_moving(hub, models, monkeypatch, moves, is_update):
    if is_update:
        get("sam3", models)
        new = {name: content(f"new/{name}", len(data)) for name, data in expected(hub, SAM3).items()}
        hub.publish(SAM3, new | {"merges.txt": expected(hub, SAM3)["merges.txt"]})
    replace, count = Path.replace, [0]

    def killed(source, target):
        count[0] += source.suffix == ".part"
        if count[0] > moves:
            raise KeyboardInterrupt
        return replace(source, target)

    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        get("sam3", models)
    found = files_in(models / "sam3")
    assert "config.json" not in found or found == expected(hub, SAM3)
    hub.requests.clear()
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    assert hub.files_sent() == []


def test_other_files_of_the_user_are_not_touched(hub, models):
    (models / "sam3").mkdir(parents=True)
    (models / "sam3" / WEIGHTS).write_bytes(b"fine-tuned for weeks")
    (models / "sam3" / "notes.txt").write_bytes(b"mine")
    with pytest.raises(
        DownloadError, match=r"other files under the same names: model\.safetensors\. Nothing.*--output"
    ):
        get("sam3", models)
    assert files_in(models / "sam3") == {WEIGHTS: b"fine-tuned for weeks", "notes.txt": b"mine"}
    assert hub.files_sent() == []


def test_changed_since_the_download(hub, models):
    get("sam3", models)
    (models / "sam3" / "config.json").write_bytes(b"{}")
    with pytest.raises(DownloadError, match=r"config\.json \(of facebook/sam3\)"):
        get("sam3", models)
    assert (models / "sam3" / "config.json").read_bytes() == b"{}"


@pytest.mark.parametrize("record", ["", "[]", '{"config.json": 3}', '{"config.json": {"repository": 1}}'])
def test_damaged_record(hub, models, record):
    get("sam3", models)
    (models / "sam3" / ".download" / "record.json").write_text(record)
    (models / "sam3" / "vocab.json").unlink()
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    hub.publish(SAM3, repository_files("new"))
    get("sam3", models)
    assert_whole(hub, models / "sam3")


def test_other_florence2_is_refused(hub, models):
    get("florence2", models)
    hub.requests.clear()
    with pytest.raises(DownloadError, match=r"Florence-2-base, received.*\(of .*Florence-2-large\).*--output"):
        get("florence2-base", models)
    assert_whole(hub, models / "florence2", LARGE)
    assert hub.files_sent() == []


def test_repository_without_weights(hub, models):
    hub.publish(SAM3, {"config.json": b"{}", "README.md": b""})
    with pytest.raises(DownloadError, match=r"model\*\.safetensors, tokenizer\.json in facebook/sam3.*README\.md"):
        get("sam3", models)


@pytest.mark.parametrize("token", [None, "hf_mistyped"])
def test_gated(hub, models, monkeypatch, token):
    hub.gated, hub.accepted_token = {SAM3}, TOKEN
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError) as caught:
        get("sam3", models, token_to_endpoint=True)
    message = str(caught.value)
    for part in ("https://huggingface.co/facebook/sam3", "hf auth login", f"{models / 'sam3'}/", "HF_TOKEN"):
        assert part in message
    assert ("(403)" in message and "has no access" in message) if token else "neither HF_TOKEN nor" in message
    assert "hf_mistyped" not in message.replace(str(models), "")
    assert isinstance(caught.value, PermissionError)
    assert files_in(models) == {}


def test_token_that_is_not_accepted(hub, models, monkeypatch):
    hub.gated = {LARGE}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(AccessError, match=r"(?s)expired or revoked.*needs no token: unset HF_TOKEN") as caught:
        get("florence2", models, token_to_endpoint=True)
    assert TOKEN not in str(caught.value)


def test_token_stays_at_home(hub, models, monkeypatch, caplog):
    """To an endpoint that is not huggingface.co it goes only when asked, and never on to where files are stored."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.gated, hub.accepted_token = {SAM3}, TOKEN
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(AccessError, match=r"HF_ENDPOINT names 127\.0\.0\.1:\d+; --token-to-endpoint"),
    ):
        get("sam3", models)
    assert "No Hugging Face token is sent to 127.0.0.1" in caplog.text
    assert {request["authorization"] for request in hub.requests} == {None}
    hub.requests.clear()
    with caplog.at_level(logging.DEBUG):
        get("sam3", models, token_to_endpoint=True)
    assert_whole(hub, models / "sam3")
    sent = {role: {r["authorization"] for r in hub.requests if r["role"] == role} for role in ("hub", "cdn")}
    assert sent == {"hub": {f"Bearer {TOKEN}"}, "cdn": {None}}
    assert TOKEN not in caplog.text


@pytest.mark.parametrize(
    ("endpoint", "is_sent"),
    [
        ("https://huggingface.co", True),
        ("https://huggingface.co/", True),
        ("http://huggingface.co", False),
        ("https://huggingface.co.evil.example", False),
        ("https://huggingface.co@evil.example", False),
        ("https://hf-mirror.example", False),
    ],
)
def test_where_the_token_goes(hub, monkeypatch, endpoint, is_sent):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    connected = connect_hub(token_to_endpoint=False)
    assert connected.token == (TOKEN if is_sent else None)
    assert TOKEN not in repr(connected)
    assert connect_hub(token_to_endpoint=True).token == TOKEN


def test_implicit_token_switched_off(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "https://huggingface.co")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert connect_hub(token_to_endpoint=False).token is None


@pytest.mark.parametrize("token", [f"{TOKEN}\x01", f"{TOKEN} x", f"{TOKEN}é"])
def test_token_that_no_header_can_hold(hub, models, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(AccessError, match="not shown") as caught:
        get("sam3", models, token_to_endpoint=True)
    assert TOKEN not in str(caught.value)


def test_token_of_a_login(hub, models, tmp_path):
    Path(constants.HF_TOKEN_PATH).parent.mkdir()
    Path(constants.HF_TOKEN_PATH).write_text(f"{TOKEN}\n")
    hub.gated, hub.accepted_token = {SAM3}, TOKEN
    get("sam3", models, token_to_endpoint=True)
    assert_whole(hub, models / "sam3")


@pytest.mark.parametrize("endpoint", ["", "hf-mirror.example", "ftp://somewhere.example", "user:secret@x.example"])
def test_endpoint_that_is_no_url(hub, models, monkeypatch, endpoint):
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    with pytest.raises(SettingError, match="HF_ENDPOINT") as caught:
        get("sam3", models)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("info", [b"<html>", b"[]", b"{}", b'{"id": "x", "sha": "main", "siblings": []}'])
def test_endpoint_that_is_no_hub(hub, models, info):
    hub.info = info
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:\d+ to tell the commit"):
        get("sam3", models)


def test_mirror_that_tells_no_hashes(hub, models):
    commit = hub.repositories[SAM3]["main"][0]
    hub.info = json.dumps({"id": SAM3, "sha": commit, "siblings": [{"rfilename": "config.json"}]}).encode()
    with pytest.raises(DownloadError, match="nothing from there can be verified"):
        get("sam3", models)


@pytest.mark.parametrize("name", ["../config.json", "..\\config.json", "C:config.json"])
def test_names_that_lead_elsewhere_are_left_out(hub, models, name):
    hub.publish(SAM3, repository_files(SAM3) | {name: b"{}"})
    get("sam3", models)
    assert_whole(hub, models / "sam3")
    assert list(models.parent.glob("config.json")) == []


@pytest.mark.parametrize(("status", "message"), [(503, "received 503"), (429, "Wait"), (404, "mirror")])
def test_other_answers(hub, models, status, message):
    hub.status = status
    with pytest.raises(DownloadError, match=message):
        get("sam3", models)


def test_no_space_before(hub, models, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"Expected 0\.3 MB free.*received 0\.1 MB.*--output"):
        get("sam3", models)
    assert hub.files_sent() == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_no_space_while_writing(hub, models):
    digest = hashlib.sha256(expected(hub, SAM3)[WEIGHTS]).hexdigest()
    stage = models / "sam3" / ".download" / "sam3-transformers"
    stage.mkdir(parents=True)
    (stage / f"{digest}.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=r"disk of .*sam3 is full.*same command"):
        get("sam3", models)
    assert files_in(models / "sam3") == {}
    (stage / f"{digest}.part").unlink()
    get("sam3", models)
    assert_whole(hub, models / "sam3")


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_read_only_output(hub, models, monkeypatch, number):
    def refuse(path, *arguments, **keywords):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DownloadError, match=f"Expected to write to .*sam3, received.*{os.strerror(number)}.*--output"):
        get("sam3", models)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only to root")
def test_read_only_folder(hub, models):
    models.mkdir(mode=0o500)
    with pytest.raises(DownloadError, match=r"Make it writable"):
        get("sam3", models)


@pytest.mark.parametrize("place", ["", "sam3", "sam3/.download", "sam3/.download/sam3-transformers"])
def test_file_where_a_folder_should_be(hub, models, place):
    path = models / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    with pytest.raises(DownloadError, match="another folder as --output"):
        get("sam3", models)
    assert path.read_bytes() == b""


def test_folder_where_a_file_should_be(hub, models):
    (models / "sam3" / WEIGHTS).mkdir(parents=True)
    with pytest.raises(DownloadError, match=r"model\.safetensors"):
        get("sam3", models)


def test_two_runs_at_once(hub, models):
    results = []
    threads = [threading.Thread(target=lambda: results.append(get("sam3", models))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [models / "sam3"] * 3
    assert_whole(hub, models / "sam3")
    assert len(hub.files_sent()) == len(SMALL) + 1


@pytest.mark.parametrize("progress", [True, False])
def test_progress_bar(hub, models, monkeypatch, capfd, progress):
    monkeypatch.setenv("TQDM_POSITION", "-1")  # shows huggingface_hub's bars without a terminal
    download("sam3", output=models, progress=progress)
    assert (WEIGHTS in capfd.readouterr().err) == progress


COMMAND = """
import logging, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 4096
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout)
from autodistill_sam3.download import download
from autodistill_sam3 import AutodistillSAM3Error
try:
    print(download("sam3", output=sys.argv[1], token_to_endpoint="asked" in sys.argv))
except AutodistillSAM3Error as error:
    sys.exit(f"error: {error}")
"""


def start_command(fake_hub, models, *arguments, **variables):
    """Run in a process of its own, with everything logged."""
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(models.parent), "HF_HOME": str(models.parent / "hf"),
        "HF_ENDPOINT": fake_hub.url, "HF_TOKEN": TOKEN, "HF_DEBUG": "1", **variables,
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(models), *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, cwd=models.parent,
    )  # fmt: skip


def test_killed_and_started_again(fake_hub, models):
    fake_hub.stall_after = 100_000
    with start_command(fake_hub, models) as process:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not any(path.stat().st_size > 90_000 for path in parts_in(models)):
            time.sleep(0.02)
        process.kill()
        process.communicate()
    assert files_in(models / "sam3") == {}
    fake_hub.stall_after, fake_hub.requests = None, []
    with start_command(fake_hub, models) as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert_whole(fake_hub, models / "sam3")
    (request,) = fake_hub.files_sent()
    assert int(request["range"].strip("bytes=-")) > 90_000
    assert {request["authorization"] for request in fake_hub.requests} == {None}
    assert TOKEN not in out + err


def test_token_is_never_shown(fake_hub, models):
    fake_hub.gated, fake_hub.accepted_token = {SAM3}, "another"
    with start_command(fake_hub, models, "asked") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1 and "(403)" in err
    assert f"Bearer {TOKEN}" in {request["authorization"] for request in fake_hub.requests}
    assert TOKEN not in out + err


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline(fake_hub, models, variable):
    with start_command(fake_hub, models, **{variable: "1"}) as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "HF_HUB_OFFLINE" in err and "Unset it" in err
    assert fake_hub.requests == []
    assert not models.exists()
