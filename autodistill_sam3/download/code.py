"""Meta's code at a pinned commit, by git: what `backend="sam3"` executes."""

from __future__ import annotations

import logging
import os
import re
import shutil
import subprocess
from pathlib import Path

from autodistill_sam3.download.catalog import CODE
from autodistill_sam3.download.folder import explained_disk_errors, locked, staging
from autodistill_sam3.download.hub import require_online
from autodistill_sam3.errors import DownloadError, SettingError
from autodistill_sam3.weights.kinds import SAM3

logger = logging.getLogger("autodistill_sam3")

CODE_URL = "https://github.com/facebookresearch/sam3"
CODE_COMMIT = "99d02f28c8d34610ab35559b72642b01f10fdb1e"
CODE_FOLDER = "sam3"

_COMMIT = re.compile(r"[0-9a-f]{40}")
# Not what git would take for an option or for more than one name.
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
# Nothing of the user's setup runs, and a stalled connection ends. Proxies and certificates stay as the user has them.
_SETTINGS = {
    "core.hooksPath": os.devnull,
    "core.fsmonitor": "false",
    "core.autocrlf": "false",
    "submodule.recurse": "false",
    "advice.detachedHead": "false",
    "init.defaultBranch": "main",
    "http.lowSpeedLimit": "1000",
    "http.lowSpeedTime": "60",
}
# Set inside a git hook, these would turn every command to the repository that the hook runs in.
_REPOSITORY_VARIABLES = frozenset({
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_COMMON_DIR", "GIT_NAMESPACE", "GIT_PREFIX", "GIT_SHALLOW_FILE", "GIT_GRAFT_FILE", "GIT_CONFIG",
    "GIT_CONFIG_PARAMETERS", "GIT_CONFIG_COUNT", "GIT_TEMPLATE_DIR",
})  # fmt: skip


def download_code(output: Path, *, revision: str | None = None, url: str = CODE_URL) -> Path:
    """Clone Meta's code into the SAM 3 folder under `output`.

    Args:
        output: The models root.
        revision: A branch, tag or full commit; by default `CODE_COMMIT`.
        url: Where to clone from.

    Returns:
        The folder of the clone.

    Raises:
        SettingError: `revision` is no name of a revision.
        DownloadError: git is missing or fails, or the folder holds something else.
    """
    wanted = _checked_revision(revision or CODE_COMMIT)
    git = _find_git()
    folder = output / SAM3.folder
    target = folder / CODE_FOLDER
    with explained_disk_errors(folder):
        if not (_COMMIT.fullmatch(wanted) and _holds(git, target, wanted)):
            require_online()
            with locked(folder, f"{CODE}.lock"):
                _clone(git, folder, target, url, wanted)
    commit = _head(git, target)
    logger.info("%s holds %s at commit %s", target, url, commit)
    logger.info(
        'This is code of Meta under its own licence (%s); backend="sam3" executes it, nothing else does',
        target / "LICENSE",
    )
    return target


def _clone(git: str, folder: Path, target: Path, url: str, revision: str) -> None:
    logger.info("Fetching %s at %s", url, revision)
    with staging(folder, CODE) as stage:
        clone = stage / CODE_FOLDER
        # git cannot go on with what an interrupted run left.
        shutil.rmtree(clone, ignore_errors=True)
        try:
            _check_out(git, clone, url, revision)
            commit = _head(git, clone)
            if commit is None or (_COMMIT.fullmatch(revision) and commit != revision):
                raise DownloadError(f"Expected commit {revision} from {url}, received {commit}. Nothing was kept.")
            if not _holds(git, target, commit):
                clone.rename(target)
        finally:
            shutil.rmtree(clone, ignore_errors=True)


def _check_out(git: str, clone: Path, url: str, revision: str) -> None:
    _git(git, "init", "--quiet", "--template=", str(clone.absolute()))
    _git(git, "remote", "add", "origin", url, clone=clone)
    fetch = ("fetch", "--quiet", "--depth", "1", "--no-tags", "--no-recurse-submodules")
    _git(git, *fetch, "origin", revision, clone=clone)
    _git(git, "checkout", "--quiet", "--detach", "--no-recurse-submodules", "FETCH_HEAD", clone=clone)


def _holds(git: str, target: Path, commit: str) -> bool:
    """Whether the folder is a clone at this commit; False where there is nothing yet.

    Raises:
        DownloadError: It is something else.
    """
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir())):
        return False
    found = _head(git, target)
    if found != commit:
        raise DownloadError(
            f"Expected {target} to be absent or a clone at commit {commit}, received "
            f"{f'one at {found}' if found else 'something else'}. Move it away and run the same command again; "
            "nothing was changed."
        )
    if _git(git, "--no-optional-locks", "status", "--porcelain", "--untracked-files=no", clone=target):
        logger.warning("%s is at commit %s with local changes, which are kept", target, commit)
    return True


def _head(git: str, clone: Path) -> str | None:
    if not os.path.lexists(clone / ".git"):
        return None
    try:
        return _git(git, "rev-parse", "--verify", "HEAD^{commit}", clone=clone)
    except DownloadError:
        return None


def _checked_revision(revision: str) -> str:
    if not _REVISION.fullmatch(revision) or ".." in revision:
        raise SettingError(f"Expected a branch, tag or full commit of {CODE_URL} as revision, received {revision!r}.")
    return revision.lower() if _COMMIT.fullmatch(revision.lower()) else revision


def _find_git() -> str:
    git = shutil.which("git")
    if git is None:
        raise DownloadError(
            f"Expected git to fetch {CODE_URL}, received none in PATH. Install it (such as `apt install git`), or copy "
            f"that repository at commit {CODE_COMMIT} to models/{SAM3.folder}/{CODE_FOLDER}."
        )
    return git


def _git(git: str, *arguments: str, clone: Path | None = None) -> str:
    """Run git in exactly that clone, never in a repository around it, and return what it prints."""
    where = [] if clone is None else [f"--git-dir={clone.absolute() / '.git'}", f"--work-tree={clone.absolute()}"]
    settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
    environment = {key: value for key, value in os.environ.items() if key not in _REPOSITORY_VARIABLES}
    environment |= {"GIT_TERMINAL_PROMPT": "0", "GCM_INTERACTIVE": "never", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}
    done = subprocess.run(
        [git, *settings, *where, *arguments],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", env=environment, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise DownloadError(
            f"Expected git to fetch {CODE_URL}, received: {said}. Check the network, the revision and the space on "
            "the disk, and run the same command again."
        )
    return done.stdout.strip()
