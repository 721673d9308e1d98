"""Checkpoints and Meta's code from where they are published -> folders under `models/`, whole or not at all."""

from __future__ import annotations

from pathlib import Path

from autodistill_sam3.download.catalog import CODE, FORMATS, NAMES, choose
from autodistill_sam3.download.checkpoint import download_checkpoint
from autodistill_sam3.download.code import download_code
from autodistill_sam3.errors import SettingError

__all__ = ["FORMATS", "NAMES", "download"]


def download(
    name: str,
    *,
    output: str | Path,
    revision: str | None = None,
    file_format: str | None = None,
    token_to_endpoint: bool = False,
    progress: bool = True,
) -> Path:
    """Download a checkpoint from the Hugging Face hub, or Meta's SAM 3 code from GitHub.

    Every file is received under a temporary name and moved into place when all of them have the size and hash that
    the hub tells. An interrupted download goes on where it was when it is started again. What is already there and
    whole is not fetched again; what another revision of the same repository left there is replaced, and files from
    anywhere else are never touched.

    Args:
        name: One of `NAMES`.
        output: The models root, such as `models/`; a folder for the model is made in it.
        revision: A branch, tag or commit; by default the repository's main branch, for the code the pinned commit.
        file_format: `"transformers"` or `"pt"` (Meta's own file); by default the first that the checkpoint comes in.
        token_to_endpoint: Send the Hugging Face token also where `HF_ENDPOINT` names another host.
        progress: Show a progress bar on a terminal.

    Returns:
        What `checkpoint=` takes: the folder of a checkpoint in transformers layout, or Meta's file; of the code, the
        folder of the clone.

    Raises:
        SettingError: There is no such name, format or form of revision.
        AccessError: The hub refuses the files.
        DownloadError: Anything else went wrong; the message says what to do.
    """
    root = Path(output).expanduser()
    if revision is not None and not revision.strip():
        raise SettingError("Expected revision to be a branch, tag or commit, received an empty one.")
    if name == CODE:
        if file_format is not None:
            raise SettingError(f"Expected no format for {CODE}, which is code, received {file_format!r}.")
        return download_code(root, revision=revision)
    choice = choose(name, file_format)
    return download_checkpoint(choice, root, revision, token_to_endpoint=token_to_endpoint, progress=progress)
