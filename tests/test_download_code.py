"""Clones of Meta's code, from a repository on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import types
from pathlib import Path

import pytest
from huggingface_hub import constants

from autodistill_sam3 import DownloadError
from autodistill_sam3.download import code as code_module
from autodistill_sam3.download import download
from autodistill_sam3.download.code import download_code

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def git(folder, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def models(tmp_path):
    return tmp_path / "models"


@pytest.fixture
def origin(tmp_path, monkeypatch):
    """A repository with two commits; the pin is the first."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    folder = tmp_path / "origin"
    folder.mkdir()
    git(folder, "init", "--quiet", "--initial-branch=main")
    commits = []
    for text in ("first", "second"):
        (folder / "LICENSE").write_text(text)
        git(folder, "add", ".")
        git(folder, "commit", "--quiet", "-m", text)
        commits.append(git(folder, "rev-parse", "HEAD"))
    git(folder, "tag", "-a", "v1", "-m", "v1", commits[0])
    monkeypatch.setattr(code_module, "CODE_COMMIT", commits[0])
    monkeypatch.setattr(code_module, "CODE_URL", folder.as_uri())
    return types.SimpleNamespace(folder=folder, url=folder.as_uri(), first=commits[0], second=commits[1])


def clone(origin, models, revision=None):
    return download_code(models, revision=revision, url=origin.url)


@needs_git
def test_code_at_the_pinned_commit(origin, models, caplog):
    with caplog.at_level(logging.INFO, "autodistill_sam3"):
        target = clone(origin, models)
    assert target == models / "sam3" / "sam3"
    assert (target / "LICENSE").read_text() == "first"
    assert git(target, "rev-parse", "HEAD") == origin.first
    assert git(target, "status", "--porcelain") == ""
    assert origin.first in caplog.text
    assert "code of Meta" in caplog.text and 'backend="sam3" executes it' in caplog.text
    assert [path.name for path in (models / "sam3" / ".download").iterdir()] == ["sam3-code.lock"]


@needs_git
@pytest.mark.parametrize("revision", ["main", "v1", "second", "SECOND"])
def test_code_at_a_revision(origin, models, revision, caplog):
    wanted = {"main": origin.second, "v1": origin.first}.get(revision, origin.second)
    if revision in ("second", "SECOND"):
        revision = origin.second.upper() if revision == "SECOND" else origin.second
    with caplog.at_level(logging.INFO, "autodistill_sam3"):
        target = clone(origin, models, revision)
    assert git(target, "rev-parse", "HEAD") == wanted
    assert f"at commit {wanted}" in caplog.text
    clone(origin, models, revision)


@needs_git
@pytest.mark.parametrize("revision", ["v9", "0" * 40])
def test_code_without_that_revision(origin, models, revision):
    with pytest.raises(DownloadError, match=r"Expected git to fetch.*received: fatal"):
        clone(origin, models, revision)
    assert not (models / "sam3" / "sam3").exists()


@needs_git
def test_code_of_another_commit_than_asked_for(origin, models, monkeypatch):
    monkeypatch.setattr(code_module, "_head", lambda git, folder: origin.second)
    with pytest.raises(DownloadError, match=f"Expected commit {origin.first}.*received {origin.second}"):
        clone(origin, models)
    assert not (models / "sam3" / "sam3").exists()


@needs_git
def test_code_that_is_there_needs_no_network(origin, models, monkeypatch):
    target = clone(origin, models)
    shutil.rmtree(origin.folder)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert clone(origin, models) == target
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        clone(origin, models / "elsewhere")


@needs_git
def test_code_with_local_changes_is_kept(origin, models, caplog):
    target = clone(origin, models)
    (target / "LICENSE").write_text("patched")
    clone(origin, models)
    assert "local changes" in caplog.text
    assert (target / "LICENSE").read_text() == "patched"


@needs_git
@pytest.mark.parametrize("revision", ["main", None])
def test_code_of_another_commit_is_refused(origin, models, revision):
    target = clone(origin, models, revision)
    with pytest.raises(DownloadError, match=r"absent or a clone at commit .*, received one at .*Move it away"):
        clone(origin, models, None if revision else "main")
    assert (target / "LICENSE").read_text() == ("second" if revision else "first")


@needs_git
@pytest.mark.parametrize("place", ["", "notes.txt", ".git/notes.txt"])
def test_other_things_where_the_code_should_be(origin, models, place):
    """Also in a models folder that is itself in a repository at the pinned commit."""
    git(origin.folder, "checkout", "--quiet", origin.first)
    models = origin.folder / "models"
    target = models / "sam3" / "sam3"
    path = target / place if place else target
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(DownloadError, match=r"received something else\. Move it away"):
        clone(origin, models)
    assert path.read_text() == "mine"


@needs_git
def test_relative_folder_that_looks_like_an_option(origin, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (clone(origin, Path("-models")) / "LICENSE").read_text() == "first"
    clone(origin, Path("-models"))


@needs_git
def test_leftovers_of_an_interrupted_clone(origin, models):
    leftover = models / "sam3" / ".download" / "sam3-code" / "sam3" / ".git"
    leftover.mkdir(parents=True)
    (leftover / "HEAD").write_text("garbage")
    (models / "sam3" / "sam3").mkdir()
    assert (clone(origin, models) / "LICENSE").read_text() == "first"


@needs_git
def test_nothing_of_the_users_git_setup_runs(origin, models, tmp_path, monkeypatch):
    hooks = tmp_path / "template" / "hooks"
    hooks.mkdir(parents=True)
    for name in ("post-checkout", "reference-transaction", "fsmonitor"):
        (hooks / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
        (hooks / name).chmod(0o755)
    settings = tmp_path / "gitconfig"
    settings.write_text(
        f"[init]\ntemplateDir = {hooks.parent}\n[core]\nhooksPath = {hooks}\nfsmonitor = {hooks}/fsmonitor\n"
    )
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(settings))
    monkeypatch.setenv("GIT_TEMPLATE_DIR", str(hooks.parent))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    target = clone(origin, models)
    clone(origin, models)
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "elsewhere").exists()
    assert not (target / ".git" / "hooks").exists()


def test_code_without_git(models, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DownloadError, match=r"Expected git.*Install it.*99d02f28c8d34610ab35559b72642b01f10fdb1e"):
        download("sam3-code", output=models)
