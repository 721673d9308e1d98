"""The HTML page: what stands on it, and how it is written. Everything passes through the template's escaping."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from autodistill_sam3.labeling.review.charts import Chart, confidence_chart, size_chart
from autodistill_sam3.labeling.review.doubt import LOW_CONFIDENCE, REASONS, Reason
from autodistill_sam3.labeling.review.shapes import class_name
from autodistill_sam3.labeling.review.summary import POLYGON_IOU, ClassSummary, Summary
from autodistill_sam3.labeling.review.text import image_href, printable

_REMOVAL_LABELS = {
    "same_class": "same object found twice, in one class",
    "other_class": "same object under another class, which fits better",
    "nms": "overlap with a better object (NMS)",
    "empty_mask": "mask without a pixel",
}
MAX_NAMES = 100


@dataclass(frozen=True)
class Shape:
    """An object in a card's picture; `path` is SVG path data."""

    class_id: int
    path: str
    label: str
    low: bool


@dataclass(frozen=True)
class Card:
    """An image on the page.

    Attributes:
        key: Its id on the page.
        source: Its whole name, for the tooltip.
        name: The same, perhaps shortened.
        split: Its split.
        href: Link to the image.
        uri: Thumbnail as data URI; empty if the image could not be read, which `problem` then says.
        problem: Why there is no thumbnail.
        size: Width and height of the thumbnail in pixels.
        grid: Thumbnail pixels per unit of the shapes, across and down.
        shapes: Objects to draw.
        alt: What is to be seen, in words.
        doubt: The score.
        pixels: Size of the image.
        objects: How many objects, in words.
        removed: What was removed, in words.
        reasons: Reasons for doubt.
        class_ids: Class ids with spaces between.
    """

    key: str
    source: str
    name: str
    split: str
    href: str
    uri: str
    problem: str
    size: tuple[int, int]
    grid: str
    shapes: Sequence[Shape]
    alt: str
    doubt: str
    pixels: str
    objects: str
    removed: str
    reasons: Sequence[Reason]
    class_ids: str

    @property
    def reason_keys(self) -> str:
        """Keys of the reasons with spaces between."""
        return " ".join(reason.key for reason in self.reasons)


@dataclass(frozen=True)
class Listing:
    """The first few of many."""

    count: int
    shown: Sequence[Any]


@dataclass(frozen=True)
class NearGroups(Listing):
    """Groups of near-duplicates; `split` says how many of those shown lie in more than one split."""

    split: int = 0


@dataclass(frozen=True)
class Page:
    """What the page shows besides the cards.

    Attributes:
        title: Heading of the page.
        classes: Class names.
        summary: Counts over all images.
        shown: How many images have a card.
        limit: How many could.
        reasons: How many cards have each reason.
        both_looked: Whether text and boxes both looked for objects.
        quarantine: Images that could not be labelled.
        report: The run's report.
        near: Groups of near-duplicates.
        sheets: Names of the PNG sheets.
    """

    title: str
    classes: Sequence[str]
    summary: Summary
    shown: int
    limit: int
    reasons: Mapping[str, int]
    both_looked: bool
    quarantine: Listing
    report: Mapping[str, Any]
    near: NearGroups
    sheets: Sequence[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Row:
    """A class in the tables; `class_id` is None for all classes together."""

    class_id: int | None
    summary: ClassSummary

    @property
    def confidence(self) -> Chart:
        return confidence_chart(self.summary)

    @property
    def size(self) -> Chart:
        return size_chart(self.summary)


@dataclass(frozen=True)
class _Tile:
    label: str
    value: str
    note: str = ""
    warn: bool = False


@dataclass(frozen=True)
class _Removal:
    label: str
    objects: int
    images: str


def write_page(file: IO[str], page: Page, cards: Callable[[], Iterator[Card]]) -> None:
    """Write the page, one card in memory at a time."""
    import jinja2

    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": _number, "show": lambda value: printable(str(value))}
    style = _palette_rules() + (folder / "page.css").read_text(encoding="utf-8")
    script = (folder / "page.js").read_text(encoding="utf-8")
    # The policy names the one style and the one script by their hashes: nothing else runs, and nothing is fetched.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_source_of(style)}; script-src {_source_of(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    markup = environment.filters["safe"]
    texts = {"policy": policy, "style": markup(style), "script": markup(script), "cards": cards}
    for piece in environment.get_template("page.html").generate(_variables(page) | texts):
        file.write(piece)


def removal_label(reason: str) -> str:
    """A reason for a removal in words.

    Example:
        >>> removal_label("nms"), removal_label("too_small")
        ('overlap with a better object (NMS)', 'too small')
    """
    return _REMOVAL_LABELS.get(reason, printable(reason).replace("_", " "))


def counted(count: int, singular: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "object"), counted(1200, "object")
        ('1 object', '1,200 objects')
    """
    return f"{count:,} {singular}{'' if count == 1 else 's'}"


def _variables(page: Page) -> dict[str, Any]:
    summary = page.summary
    rows = [_Row(class_id, one) for class_id, one in summary.classes]
    every = [_Row(None, summary.everything)] if len(rows) > 1 else []
    removed = _removed(page)
    gone = list(page.report.get("removed_from_input") or ())
    return {
        "title": printable(page.title),
        "colours": _palette_size(),
        "tiles": _tiles(page, sum(item.objects for item in removed)),
        "splits": summary.splits,
        "rows": every + rows,
        "options": _options(page),
        "shown": page.shown,
        "shown_text": _shown_text(page),
        "low_confidence": f"{LOW_CONFIDENCE:g}",
        "sheets": page.sheets,
        "kinds": REASONS,
        "quarantine": page.quarantine,
        "removed": removed,
        "removed_total": sum(item.objects for item in removed),
        "gone": Listing(len(gone), gone[:MAX_NAMES]),
        "near": page.near,
        "polygons": [row for row in every + rows if len(row.summary.polygon_range)],
        "polygon_limit": POLYGON_IOU,
        "worst": _worst_polygons(page),
    }


def _tiles(page: Page, removed: int) -> list[_Tile]:
    summary = page.summary
    images, empty = sum(summary.images.values()), sum(summary.empty.values())
    objects = summary.everything.objects
    unused = [one.name for _, one in summary.classes if not one.objects]
    splits = ", ".join(f"{summary.images[split]:,} {printable(split)}" for split in summary.splits)
    tiles = [
        _Tile("Images", _number(images), splits),
        _Tile("Objects", _number(objects), f"{objects / images:.1f} an image" if images else ""),
        _Tile("Images without objects", _number(empty), _percent(empty, images)),
        _Tile("Quarantined", _number(page.quarantine.count), "could not be labelled", page.quarantine.count > 0),
        _Tile("Objects removed", _number(removed), "duplicates and the like"),
    ]
    if page.both_looked:
        alone = summary.sources["text"] + summary.sources["boxes"]
        note = f"{summary.sources['text']:,} by text, {summary.sources['boxes']:,} by boxes"
        tiles.append(_Tile("Found by one side alone", _percent(alone, objects), note))
    if unused and images:
        note = ", ".join(map(printable, unused[:5])) + (" …" if len(unused) > 5 else "")
        tiles.append(_Tile("Classes without objects", _number(len(unused)), note, warn=True))
    return tiles


def _shown_text(page: Page) -> str:
    total = sum(page.summary.images.values())
    if page.shown == total:
        return f"{'The image is' if total == 1 else f'All {total:,} images are'} shown, the most doubtful first."
    return (
        f"The {page.shown:,} most doubtful of {total:,} images are shown; while there are others, at most "
        f"{page.limit // 4} without objects. Counts are of all images."
    )


def _options(page: Page) -> dict[str, list[tuple[str, str]]]:
    summary = page.summary
    return {
        "classes": [(str(class_id), printable(one.name)) for class_id, one in summary.classes],
        "splits": [(split, printable(split)) for split in summary.splits],
        "reasons": [
            (key, f"{kind.label} ({page.reasons[key]:,})") for key, kind in REASONS.items() if page.reasons.get(key)
        ],
    }


def _removed(page: Page) -> list[_Removal]:
    """From the records; the report may know of reasons that no record has."""
    counts = page.summary.removed
    others = {key: count for key, count in (page.report.get("removed") or {}).items() if key not in counts}
    own = [_Removal(removal_label(key), n, _number(page.summary.removed_images[key])) for key, n in counts.items()]
    rest = [_Removal(removal_label(key), int(count), "") for key, count in others.items()]
    return sorted(own + rest, key=lambda item: (-item.objects, item.label))


def _worst_polygons(page: Page) -> list[dict[str, Any]]:
    return [
        {
            "iou": worst.iou,
            "class_id": worst.class_id,
            "class_name": class_name(page.classes, worst.class_id),
            "source": worst.source,
            "href": image_href(worst.split, worst.file),
        }
        for worst in page.summary.worst_polygons
    ]


def _palette_size() -> int:
    """Classes beyond it share colours, on the sheets too."""
    import supervision as sv

    return len(sv.ColorPalette.DEFAULT.colors)


def _palette_rules() -> str:
    import supervision as sv

    colours = enumerate(sv.ColorPalette.DEFAULT.colors)
    return "\n".join(f".k{index} {{ --c: {colour.as_hex()}; }}" for index, colour in colours) + "\n"


def _source_of(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _number(value: int) -> str:
    return f"{value:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""
