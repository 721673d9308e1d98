"""What a benchmark is asked to do, and what one of its rows is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from autodistill_sam3.errors import SettingError

Prompting = Literal["text", "both"]
EngineName = Literal["sam3-package", "transformers", "autodistill-loop", "ours"]
ENGINES: tuple[EngineName, ...] = get_args(EngineName)
TITLES: dict[str, str] = {
    "sam3-package": "sam3 package",
    "transformers": "transformers",
    "autodistill-loop": "autodistill loop",
    "ours": "this package",
}
# What the small bundled checkpoint knows; to random weights all words are the same.
PROMPTS = (
    "red circle", "blue square", "green triangle", "yellow cross", "white ring",
    "purple star", "orange circle", "black square", "red triangle", "blue cross",
    "green ring", "yellow star", "white circle", "purple square", "orange triangle",
    "black cross", "red ring", "blue star", "green circle", "yellow square",
)  # fmt: skip
# What both sides let Florence-2 say: random weights never end an answer.
FLORENCE2_TOKENS = 64
BOXES_PER_IMAGE = 10
MASKS_PER_IMAGE = 20


@dataclass(frozen=True)
class Settings:
    """What to measure and with what; everything is a JSON value once `as_json` has turned paths into text.

    Attributes:
        output: The folder for results; pictures and datasets are made in it.
        sam3_file: Meta's `sam3.pt`, for the engines that read it.
        sam3_folder: The same in transformers layout.
        checkpoint: What this package loads.
        florence2: A Florence-2 folder in transformers layout.
        bpe_path: The vocabulary.
        device: Such as "cuda"; None takes the best there is.
        images: Pictures that this package labels in each row.
        reference_images: Pictures that the others are given in each row, at most.
        seconds: A row of a reference ends after this time, with at least two pictures; this package labels fewer
            pictures where all would take longer.
        warmup_images: Pictures of the first, untimed run.
    """

    output: Path
    sam3_file: Path | None = None
    sam3_folder: Path | None = None
    checkpoint: str | None = None
    florence2: Path | None = None
    bpe_path: Path | None = None
    device: str | None = None
    images: int = 320
    reference_images: int = 16
    seconds: float = 8.0
    warmup_images: int = 64
    classes: tuple[int, ...] = (1, 5, 20)
    prompting: tuple[Prompting, ...] = ("text", "both")

    def __post_init__(self) -> None:
        counts = {
            "images": self.images, "reference_images": self.reference_images, "warmup_images": self.warmup_images,
        }  # fmt: skip
        for name, value in counts.items():
            if value < 1:
                raise SettingError(f"Expected {name} to be at least 1, received {value}")
        if not self.classes or not all(1 <= count <= len(PROMPTS) for count in self.classes):
            raise SettingError(f"Expected classes between 1 and {len(PROMPTS)}, received {list(self.classes)}")
        if unknown := set(self.prompting) - set(get_args(Prompting)):
            raise SettingError(f"Expected prompting to be of {get_args(Prompting)}, received {sorted(unknown)}")

    @property
    def pictures(self) -> Path:
        """The folder of the pictures that all are given."""
        return self.output / "pictures"

    def as_json(self) -> dict[str, Any]:
        """JSON values that :meth:`from_json` turns back."""
        return {
            name: str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Settings:
        """The settings that :meth:`as_json` was called on."""
        paths = ("output", "sam3_file", "sam3_folder", "florence2", "bpe_path")
        typed: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else Path(value) if name in paths and value else value
            for name, value in values.items()
        }
        return cls(**typed)


@dataclass(frozen=True)
class Work:
    """One row's work.

    Attributes:
        classes: How many prompts, each its own class.
        prompting: "text", or "both": Florence-2 is asked for each prompt as well, and ten boxes become masks.
        threshold: The confidence that leaves about twenty masks an image.
        presence_gate: Below it Florence-2 is not asked.
    """

    classes: int
    prompting: Prompting
    threshold: float
    presence_gate: float | None = None

    @property
    def prompts(self) -> tuple[str, ...]:
        """What to look for."""
        return PROMPTS[: self.classes]


@dataclass(frozen=True)
class Measured:
    """What a row came to.

    Attributes:
        images: How many pictures were timed.
        seconds: In all.
        masks: Masks an image that came out.
        notes: Words and numbers for the report, JSON values.
    """

    images: int
    seconds: float
    masks: float
    notes: dict[str, Any] = field(default_factory=dict)


def row_name(engine: str, work: Work) -> str:
    """The name of a row, for `--rows`.

    Example:
        >>> row_name("ours", Work(5, "both", 0.5, presence_gate=0.3))
        'ours/both/5/gate'
    """
    gate = "/gate" if work.presence_gate is not None else ""
    return f"{engine}/{work.prompting}/{work.classes}{gate}"
