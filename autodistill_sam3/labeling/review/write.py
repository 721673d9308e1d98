"""Records -> the files in `review/`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from autodistill_sam3.labeling.records import ImageRecord
from autodistill_sam3.labeling.review.cards import Drawing, draw_record
from autodistill_sam3.labeling.review.doubt import DISAGREE, Ranking, assess
from autodistill_sam3.labeling.review.drawing import ReviewSheet
from autodistill_sam3.labeling.review.page import MAX_NAMES, Listing, NearGroups, Page, write_page
from autodistill_sam3.labeling.review.summary import Summary
from autodistill_sam3.labeling.review.text import image_href
from autodistill_sam3.whole_files import replacing

MAX_IMAGES = 128
PAGE = "index.html"
_GROUP_NAMES = 12


def write_review(
    folder: Path,
    records: Callable[[], Iterable[ImageRecord]],
    image_path: Callable[[ImageRecord], Path],
    classes: Sequence[str],
    report: Mapping[str, Any],
    quarantine: Iterable[Mapping[str, str]],
    *,
    title: str,
    limit: int = MAX_IMAGES,
) -> list[Path]:
    """Write PNG sheets and `index.html`, to judge the labels of a run by.

    Up to `limit` images all are shown, beyond that the most doubtful ones; counts are always of all. Records are read
    twice, one in memory at a time. Equal input gives equal bytes.

    Args:
        folder: Where to write; sheets of an earlier run in it are replaced.
        records: Gives the records of the run, each time in the same order.
        image_path: The image file of a record.
        classes: Class names; a class id is an index into them.
        report: The run's report; `near_duplicates` (groups of sources), `removed` and `removed_from_input` are used.
        quarantine: `source` and `reason` of each image that could not be labelled.
        title: Heading of the page.
        limit: How many images to show at most.

    Returns:
        The page, then the sheets.
    """
    groups = [list(group) for group in report.get("near_duplicates") or ()]
    places: dict[str, tuple[str, str]] = {}
    wanted = {name for group in groups[:MAX_NAMES] for name in group[:_GROUP_NAMES]}
    summary, ranking = Summary(classes), Ranking(limit)
    for record in records():
        summary.add(record)
        ranking.add(record, assess(record))
        if record["source"] in wanted:
            places[record["source"]] = record["split"], record["file"]
    shown = _draw_chosen(records(), ranking, image_path, classes)
    folder.mkdir(parents=True, exist_ok=True)
    sheets = _write_sheets(folder, shown)
    page = Page(
        title=title,
        classes=classes,
        summary=summary,
        shown=len(shown),
        limit=limit,
        reasons=Counter(reason.key for one in shown for reason in one.card.reasons),
        both_looked=ranking.both_looked,
        quarantine=_first_of(quarantine),
        report=report,
        near=_near_groups(groups, places),
        sheets=[path.name for path in sheets],
    )
    with replacing(folder / PAGE, "w") as file:
        write_page(file, page, lambda: (one.card for one in shown))
    return [folder / PAGE, *sheets]


def _draw_chosen(
    records: Iterable[ImageRecord],
    ranking: Ranking,
    image_path: Callable[[ImageRecord], Path],
    classes: Sequence[str],
) -> list[Drawing]:
    """The chosen images, the most doubtful first."""
    chosen = ranking.chosen()
    drawn: list[tuple[float, int, Drawing]] = []
    for index, record in enumerate(records):
        if index in chosen:
            doubt = assess(record) if ranking.both_looked else assess(record).without(DISAGREE)
            drawn.append((-doubt.score, index, draw_record(record, doubt, image_path(record), classes)))
    drawn.sort(key=lambda item: item[:2])
    return [
        replace(drawing, card=replace(drawing.card, key=f"image-{place}"))
        for place, (_, _, drawing) in enumerate(drawn, 1)
    ]


def _write_sheets(folder: Path, shown: Sequence[Drawing]) -> list[Path]:
    sheet = ReviewSheet(folder)
    for drawing in shown:
        sheet.add_cell(drawing.cell)
    paths = sheet.close()
    for path in sorted(folder.glob("sheet_*.png")):
        if path not in paths:
            path.unlink()
    return paths


def _first_of(quarantine: Iterable[Mapping[str, str]]) -> Listing:
    items = iter(quarantine)
    shown = [{"source": item.get("source", ""), "reason": item.get("reason", "")} for item in islice(items, MAX_NAMES)]
    return Listing(len(shown) + sum(1 for _ in items), shown)


def _near_groups(groups: Sequence[Sequence[str]], places: Mapping[str, tuple[str, str]]) -> NearGroups:
    shown = [_near_group(group, places) for group in groups[:MAX_NAMES]]
    return NearGroups(len(groups), shown, sum(len(group["splits"]) > 1 for group in shown))


def _near_group(group: Sequence[str], places: Mapping[str, tuple[str, str]]) -> dict[str, Any]:
    names = group[:_GROUP_NAMES]
    found = [places[name] for name in names if name in places]
    return {
        "members": [{"name": name, "href": image_href(*places[name]) if name in places else ""} for name in names],
        "splits": sorted({split for split, _ in found}),
        "more": len(group) - len(names),
    }
