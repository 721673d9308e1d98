"""What a labelling run is asked to do."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling.formats import DEFAULT_FORMATS, Format, check_formats
from autodistill_sam3.labeling.inputs import ImagesInput, input_root
from autodistill_sam3.labeling.records import SPLITS, Split
from autodistill_sam3.labeling.split import SplitRule


@dataclass(frozen=True)
class LabelingPlan:
    """What to label and how to write it.

    Attributes:
        source: A folder of images, a glob, a manifest, an image, or a list of paths; see `find_images`.
        output: The folder to write.
        classes: Class names; a class id is an index into them.
        settings: What else decides which labels come out, as JSON values; a rerun with equal settings goes on.
        provenance: What else `run.json` says of where the labels come from, such as versions, as JSON values.
        extension: Take only files with this suffix.
        recursive: Look into sub-folders.
        limit: Take only so many images.
        batch_size: Images per call of the model, which never gets more or fewer.
        split: Which split an image belongs to.
        group_near_duplicates: Put an image into the split of the earliest one that it nearly equals.
        formats: Of the labels.
        record_confidence: Write `confidence-<name>.txt` beside each YOLO file.
        plot: Write review sheets.
        overwrite: Start anew even if there is an earlier run's dataset.
        progress: Show a progress bar.
        on_gpu: The model runs on a GPU, which is not to wait for what is computed from its answers.

    Raises:
        SettingError: A value is out of its range.
    """

    source: ImagesInput
    output: Path
    classes: tuple[str, ...]
    settings: dict[str, Any]
    provenance: dict[str, Any] = field(default_factory=dict)
    extension: str | None = None
    recursive: bool = False
    limit: int | None = None
    batch_size: int = 8
    split: SplitRule = field(default_factory=SplitRule)
    group_near_duplicates: bool = False
    formats: tuple[Format, ...] = DEFAULT_FORMATS
    record_confidence: bool = False
    plot: bool = False
    overwrite: bool = False
    progress: bool = True
    on_gpu: bool = False

    def __post_init__(self) -> None:
        check_formats(self.formats)
        for name, value in (("limit", self.limit), ("batch_size", self.batch_size)):
            if value is not None and value < 1:
                raise SettingError(f"Expected {name} to be at least 1, received {value}")

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits of the dataset."""
        return tuple(split for split in SPLITS if split != "test" or self.split.test_share)

    def as_run(self) -> dict[str, Any]:
        """What `run.json` says: settings that a rerun must share, and what it writes and runs on."""
        root = input_root(self.source)
        decides = {
            "source": root and str(root.resolve()),
            "classes": list(self.classes),
            "batch_size": self.batch_size,
            "split": asdict(self.split),
            "group_near_duplicates": self.group_near_duplicates,
        }
        return {
            "format": "autodistill_sam3",
            "settings": self.settings | decides,
            "writes": {"formats": list(self.formats), "record_confidence": self.record_confidence},
            "provenance": self.provenance,
        }
