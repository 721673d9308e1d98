"""`report.json`: what a dataset holds, and what was left out, merged or lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from autodistill_sam3.labeling.records import ImageRecord, found_by_models
from autodistill_sam3.labeling.split import NearDuplicates

# Below it a polygon is counted as one that lost something; rounding alone stays above.
_KEPT = 0.99


class Report:
    """Counts records as they pass, one in memory at a time.

    Args:
        classes: Class names.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._classes = classes
        self._images: Counter[str] = Counter()
        self._empty: Counter[str] = Counter()
        self._objects: dict[str, Counter[str]] = {name: Counter() for name in classes}
        self._removed: Counter[str] = Counter()
        self._polygons: list[float] = [0, 0, 0.0, 1.0]
        self._hashes: list[tuple[str, str]] = []

    def counting(self, records: Iterable[ImageRecord]) -> Iterator[ImageRecord]:
        """The records, each counted as it passes."""
        for record in records:
            self._count(record)
            yield record

    def as_json(self, *, removed_images: Sequence[str], quarantined: int) -> dict[str, Any]:
        """The report.

        Args:
            removed_images: Images of the dataset that are no longer in the input.
            quarantined: How many images could not be labelled.
        """
        count, lossy, total, worst = self._polygons
        return {
            "images": dict(self._images),
            "images_without_objects": dict(self._empty),
            "objects": {name: dict(counts) for name, counts in self._objects.items()},
            "removed": dict(sorted(self._removed.items())),
            "polygons": {
                "count": int(count),
                "below_0.99_iou": int(lossy),
                "mean_iou": round(total / count, 6) if count else None,
                "worst_iou": worst if count else None,
            },
            "near_duplicates": near_duplicate_groups(sorted(self._hashes)),
            "quarantined": quarantined,
            "removed_from_input": list(removed_images),
        }

    def _count(self, record: ImageRecord) -> None:
        split = record["split"]
        self._images[split] += 1
        self._empty[split] += not found_by_models(record["annotations"])
        self._removed.update(record.get("removed", {}))
        self._hashes.append((record["source"], record["phash"]))
        for annotation in record["annotations"]:
            self._objects[self._classes[annotation["class_id"]]][split] += 1
            if (iou := annotation.get("polygon_iou")) is not None:
                count, lossy, total, worst = self._polygons
                self._polygons = [count + 1, lossy + (iou < _KEPT), total + iou, min(worst, iou)]


def near_duplicate_groups(hashes: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Groups of images whose perceptual hashes are near, each with its earliest image first.

    Args:
        hashes: Name and hash of each image, in the order of the names.

    Example:
        >>> near_duplicate_groups([("a", "00000000ffffffff"), ("b", "ffffffff00000000"), ("c", "00000000fffffffe")])
        [['a', 'c']]
    """
    known: NearDuplicates[str] = NearDuplicates()
    group_of: dict[str, list[str]] = {}
    for name, phash in hashes:
        earliest = known.earliest(phash)
        if earliest is not None:
            group = group_of.setdefault(earliest, [earliest])
            group.append(name)
            group_of[name] = group
        known.add(phash, name)
    return [group for first, group in sorted(group_of.items()) if group[0] == first]


def summary(report: dict[str, Any]) -> str:
    """The report in a line or two."""
    images = ", ".join(f"{count} {split}" for split, count in report["images"].items()) or "none"
    objects = {name: sum(counts.values()) for name, counts in report["objects"].items()}
    lines = [f"images: {images}", "objects: " + ", ".join(f"{count} {name}" for name, count in objects.items())]
    if report["removed"]:
        lines.append("merged or removed: " + ", ".join(f"{n} {reason}" for reason, n in report["removed"].items()))
    if report["near_duplicates"]:
        lines.append(f"near-duplicates: {sum(map(len, report['near_duplicates']))} images in "
                     f"{len(report['near_duplicates'])} groups")  # fmt: skip
    if lossy := report["polygons"]["below_0.99_iou"]:
        lines.append(f"polygons: {lossy} of {report['polygons']['count']} keep less than 99 % of their mask (worst "
                     f"{report['polygons']['worst_iou']:.2f}); COCO has them exactly")  # fmt: skip
    return "\n".join(lines)
