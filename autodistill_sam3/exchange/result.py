"""What an exchange did, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, fields


@dataclass
class ExportReport:
    """What was written for Label Studio.

    Attributes:
        images: Tasks.
        objects: Objects of the labelled folder.
        regions: Regions in Label Studio; more than objects where polygons hold objects of several parts.
        objects_in_parts: Objects that became several polygons; they are joined again on the way back.
        objects_changed: Objects whose polygons do not give exactly the mask again.
        mean_iou: Mean IoU of all polygons with their masks; 1.0 with the brush.
        min_iou: The lowest of these.
        files: Names of the files with tasks.
    """

    images: int = 0
    objects: int = 0
    regions: int = 0
    objects_in_parts: int = 0
    objects_changed: int = 0
    mean_iou: float = 1.0
    min_iou: float = 1.0
    files: list[str] = field(default_factory=list)


@dataclass
class ImportReport:
    """What came back from Label Studio.

    Attributes:
        images: Images of the new dataset.
        objects: Their objects.
        as_predicted: Regions that people left as they were.
        changed: Regions that people changed.
        drawn: Regions that people drew.
        not_reviewed: Images that nobody annotated; left out unless asked for.
        skipped: Images whose only annotations were cancelled; left out.
        several_annotations: Images with more than one annotation; the latest counts.
        unknown_tasks: Tasks whose image is not in the labelled folder; left out.
        without_class: Regions without a class; left out.
        empty: Regions without a pixel; left out.
        not_regions: Results that are no regions, such as choices and comments; left out.
        new_classes: Classes that the labelled folder did not have.
    """

    images: int = 0
    objects: int = 0
    as_predicted: int = 0
    changed: int = 0
    drawn: int = 0
    not_reviewed: int = 0
    skipped: int = 0
    several_annotations: int = 0
    unknown_tasks: int = 0
    without_class: int = 0
    empty: int = 0
    not_regions: int = 0
    new_classes: list[str] = field(default_factory=list)


def format_exchange(report: ExportReport | ImportReport) -> str:
    """One line per number.

    Example:
        >>> print(format_exchange(ExportReport(images=2, files=["tasks.json"])).splitlines()[0])
        images           2
    """
    lines = []
    width = max(len(item.name) for item in fields(report))
    for item in fields(report):
        value = getattr(report, item.name)
        if isinstance(value, list):
            value = ", ".join(value) or "none"
        text = f"{value:.4f}" if isinstance(value, float) else str(value)
        lines.append(f"{item.name.replace('_', ' '):<{width}} {text}")
    return "\n".join(lines)
