"""What preparing did, as plain numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from autodistill_sam3.labeling.records import SPLITS

Counts = dict[str, int]


@dataclass(frozen=True)
class PreparationReport:
    """What became of a labelled folder.

    Attributes:
        items_before: Split -> images of the labelled folder, or what could have been made of them (crops, cut-outs).
        items: Split -> images of the prepared dataset.
        dropped: Reason -> split -> items that were left out.
        removed: Reason -> objects that the items would have had.
        quarantined: Images that could not be read.
        items_by_class: Class -> split -> crops or cut-outs of its objects; whole images are none.
        objects_before: Class -> split -> objects of the labelled folder.
        objects: Class -> split -> objects of the prepared dataset; one may be in several crops.
    """

    items_before: Counts
    items: Counts
    dropped: dict[str, Counts]
    removed: Counts
    quarantined: int
    items_by_class: dict[str, Counts]
    objects_before: dict[str, Counts]
    objects: dict[str, Counts]

    @classmethod
    def of(cls, report: Mapping[str, Any]) -> PreparationReport:
        """Out of what `report.json` says."""
        return cls(
            items_before=report["items_before"],
            items=report["images"],
            dropped=report["dropped"],
            removed=report["removed"],
            quarantined=report["quarantined"],
            items_by_class=report["items_by_class"],
            objects_before=report["objects_before"],
            objects=report["objects"],
        )


def format_preparation(report: PreparationReport) -> str:
    """Tables of what is kept and dropped, and of the objects by class.

    Example:
        >>> before, after = {"train": 3, "valid": 1}, {"train": 2, "valid": 1}
        >>> report = PreparationReport(
        ...     items_before=before, items=after, dropped={"tiny": {"train": 1}}, removed={}, quarantined=0,
        ...     items_by_class={"ball": after}, objects_before={"ball": before}, objects={"ball": before},
        ... )  # fmt: skip
        >>> print(format_preparation(report))
        items           train  valid    all
        before              3      1      4
          tiny              1      0      1
        kept                2      1      3
        <BLANKLINE>
        class  items  objects before  objects after
        ball       3               4              4
    """
    splits = [split for split in SPLITS if split in report.items_before]
    rows = [["items", *splits, "all"], ["before", *_counts(report.items_before, splits)]]
    rows += [[f"  {_words(reason)}", *_counts(counts, splits)] for reason, counts in report.dropped.items()]
    rows += [["kept", *_counts(report.items, splits)]]
    columns = {"objects before": report.objects_before, "objects after": report.objects}
    if any(report.items_by_class.values()):
        columns = {"items": report.items_by_class, **columns}
    classes = [["class", *columns]]
    classes += [[name, *(str(sum(column[name].values())) for column in columns.values())] for name in report.objects]
    lines = [*_table(rows, 15), "", *_table(classes, 0)]
    lines += [f"objects removed, {_words(reason)}: {count}" for reason, count in report.removed.items()]
    if report.quarantined:
        lines.append(f"images that could not be read: {report.quarantined}")
    return "\n".join(lines)


def counts_by_split(pairs: Sequence[tuple[str, str]]) -> dict[str, Counts]:
    """Of (name, split), how often each is there.

    Example:
        >>> counts_by_split([("tiny", "train"), ("blurred", "train"), ("tiny", "valid"), ("tiny", "train")])
        {'blurred': {'train': 1}, 'tiny': {'train': 2, 'valid': 1}}
    """
    counts = Counter(pairs)
    names = sorted({name for name, _ in pairs})
    return {name: {split: counts[name, split] for split in SPLITS if counts[name, split]} for name in names}


def _words(reason: str) -> str:
    return reason.replace("_", " ")


def _counts(counts: Mapping[str, int], splits: Sequence[str]) -> list[str]:
    return [str(counts.get(split, 0)) for split in splits] + [str(sum(counts.values()))]


def _table(rows: Sequence[Sequence[str]], least: int) -> list[str]:
    """The first column to the left, the others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    first, others = max(widths[0], least), [max(width, 5) for width in widths[1:]]
    return [
        "  ".join([row[0].ljust(first), *(cell.rjust(width) for cell, width in zip(row[1:], others, strict=True))])
        for row in rows
    ]
