"""The two models whose checkpoints are looked for, and how each is recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckpointKind:
    """One of the two models.

    Attributes:
        title: The model's name in messages.
        folder: Its folder under a models root.
        model_type: `model_type` of its transformers `config.json`.
        cache_folder: Its folder under `~/.cache/autodistill`.
        hub_id: Its repository on the Hugging Face hub.
        hub_files: Other (repository, file) pairs by which it is found in the hub's cache.
        help: What to do when there is no checkpoint.
        official_files: Names of its developers' own files, which are read without conversion, the preferred one first.
    """

    title: str
    folder: str
    model_type: str
    cache_folder: str
    hub_id: str
    help: str
    official_files: tuple[str, ...] = ()
    hub_files: tuple[tuple[str, str], ...] = ()


SAM3 = CheckpointKind(
    title="SAM 3",
    folder="sam3",
    model_type="sam3_video",
    cache_folder="segment_anything_3",
    hub_id="facebook/sam3",
    help=(
        "Request access on https://huggingface.co/facebook/sam3, then run `hf auth login` and "
        "`autodistill-sam3 download sam3`, or copy sam3.pt or the files of that page to models/sam3/. "
        'To try the pipeline without it on drawn shapes, pass checkpoint="shapes".'
    ),
    official_files=("sam3.pt", "sam3.1_multiplex.pt"),
    hub_files=(("facebook/sam3", "sam3.pt"), ("facebook/sam3.1", "sam3.1_multiplex.pt")),
)
FLORENCE2 = CheckpointKind(
    title="Florence-2",
    folder="florence2",
    model_type="florence2",
    cache_folder="florence_2",
    hub_id="florence-community/Florence-2-large",
    help=(
        "Run `autodistill-sam3 download florence2`, or copy the files of "
        "https://huggingface.co/florence-community/Florence-2-large to models/florence2/. "
        'prompting="text" needs no Florence-2.'
    ),
)
