"""What a distillation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from autodistill_sam3.errors import SettingError
from autodistill_sam3.students.student import DEFAULT_EPOCHS, DEFAULT_SEED

Export = Literal["onnx"]
_LEAST_SIZE = 32


@dataclass(frozen=True)
class DistillSettings:
    """What decides how a student turns out.

    Attributes:
        student: Its name; see `find_student`.
        epochs: Passes over the train split.
        image_size: Side in pixels of what it sees; None takes the student's own.
        batch_size: Images per step; None takes the student's own.
        seed: Of what is random.
        weights: What it begins with; None is random weights. A plugin's constructor gets it as text.
        device: Such as "cuda:1"; None takes the best there is.
        export: Also write the network in this format.

    Raises:
        SettingError: A value is out of its range.
    """

    student: str
    epochs: int = DEFAULT_EPOCHS
    image_size: int | None = None
    batch_size: int | None = None
    seed: int = DEFAULT_SEED
    weights: Path | None = None
    device: str | None = None
    export: Export | None = None

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("image_size", _LEAST_SIZE), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise SettingError(f"Expected {name} to be at least {least}, received {value}")
        if self.export is not None and self.export not in get_args(Export):
            raise SettingError(f"Expected export to be one of {get_args(Export)}, received {self.export!r}")
