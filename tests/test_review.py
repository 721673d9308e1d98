"""What `review/` shows, against the records it was made from, in files and in a browser."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import tracemalloc
import weakref
from collections import Counter
from html.parser import HTMLParser
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
import supervision as sv
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from autodistill_sam3.labeling.review import draw_detections, draw_sheet, shapes, write_review
from autodistill_sam3.labeling.review.doubt import BORDER, DISAGREE, EMPTY, LOW, OVERLAPS, Ranking, assess
from autodistill_sam3.labeling.review.drawing import draw_cell
from autodistill_sam3.labeling.review.shapes import MAX_OBJECTS_DRAWN, outlines, small_detections, small_mask
from autodistill_sam3.labeling.review.text import font_for, printable, shorten
from autodistill_sam3.rle import crop_to_rle

HOSTILE = [
    '<img src=x onerror="document.title=1">.jpg',
    '"onmouseover="document.title=2.jpg',
    "<script>document.title=3<&#47;script>.jpg",
    "'><svg onload=document.title=4>.jpg",
    "100% #1?&amp;.jpg",
    "line\nbreak \u202egpj.exe.jpg",
    os.fsdecode(b"bytes \xff\xfe.jpg"),
    "日本語 ünï.jpg",
    "{{ 7*7 }}{% endblock %} http://example.com.jpg",
]
CLASSES = ["ball", "</script><script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "never seen"]


def annotation(mask, class_id=0, confidence=0.9, source="both", prompt="thing", x=0, y=0, image_hw=None, **more):
    """A mask, or its part at (x, y), as it stands in a record."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    left, top = x + int(columns[0]), y + int(rows[0])
    return {
        "class_id": class_id,
        "bbox": [float(left), float(top), float(tight.shape[1]), float(tight.shape[0])],
        "area": float(tight.sum()),
        "segmentation": crop_to_rle(tight, left, top, image_hw or mask.shape),
        "polygon_iou": None,
        "confidence": confidence,
        "data": {"prompt": prompt, "source": source},
    } | more


def box(x, y, width, height, image_hw=(60, 80), **more):
    return annotation(np.ones((height, width), dtype=bool), x=x, y=y, image_hw=image_hw, **more)


def record(name="a.jpg", annotations=(), split="train", size=(80, 60), **more):
    return {
        "source": name,
        "file": name.replace("/", "_"),
        "split": split,
        "width": size[0],
        "height": size[1],
        "annotations": list(annotations),
        "removed": {},
    } | more


def write(folder, records, report=None, quarantine=(), classes=CLASSES, **more):
    def image_path(one):
        return folder / one["split"] / "images" / one["file"]

    return write_review(
        folder / "review", lambda: iter(records), image_path, classes, report or {}, quarantine, title="Run", **more
    )


def save_images(folder, records):
    for index, one in enumerate(records):
        path = folder / one["split"] / "images" / one["file"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (one["width"], one["height"]), (90, 20 * index % 256, 120)).save(path, format="JPEG")


class Dom(HTMLParser):
    """Elements as (tag, attributes, text within), in the order of their start tags."""

    VOID = frozenset({"meta", "link", "img", "input", "br"})

    def __init__(self, text):
        super().__init__()
        self.elements, self._open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])
        if tag not in self.VOID:
            self._open.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attrs):
        self.elements.append([tag, dict(attrs), ""])

    def handle_endtag(self, tag):
        while self._open and self.elements[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data):
        for index in self._open:
            self.elements[index][2] += data

    def all(self, tag=None, **wanted):
        return [
            (attributes, text)
            for name, attributes, text in self.elements
            if tag in (None, name)
            and all(value in (attributes.get(key.rstrip("_")) or "").split() for key, value in wanted.items())
        ]

    def one(self, tag=None, **wanted):
        [found] = self.all(tag, **wanted)
        return found

    def cards(self):
        return self.all("article", class_="card")

    def names(self):
        return [text for _, text in self.all("h3") if text.endswith(".jpg")]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """A folder with images of hostile names, its records, and its page."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(1)
    records = []
    for index, name in enumerate(HOSTILE):
        found = [
            box(
                int(rng.integers(1, 40)), int(rng.integers(1, 25)), 12 + number, 14 + 7 * number,
                class_id=(index + number) % 3,
                confidence=round(float(rng.uniform(0.3, 1)), 4), source=("both", "text", "boxes")[number % 3],
                prompt=HOSTILE[index], polygon_iou=0.9 + 0.1 * (number == 0),
            )
            for number in range(index % 4)
        ]  # fmt: skip
        removed = {"same_class": 2, "<b>new_reason": 1} if index == 2 else {}
        records.append(record(name, found, "valid" if index % 3 == 0 else "train", removed=removed))
    try:
        save_images(folder, records)
    except OSError:
        pytest.skip("the file system refuses such names")
    report = {
        "removed": {"same_class": 2, "<b>new_reason": 1, "nms": 5},
        "near_duplicates": [HOSTILE[:2], [HOSTILE[4], "no longer there.jpg"]],
        "removed_from_input": ["<i>gone</i>.jpg"],
    }
    quarantine = [{"source": f"{name}.broken", "reason": f"cannot be read: {name}"} for name in HOSTILE]
    write(folder, records, report, quarantine)
    return folder, records


@pytest.fixture(scope="module")
def page(hostile):
    return Dom((hostile[0] / "review" / "index.html").read_text())


def find_chromium():
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browse(tmp_path_factory):
    """Opens a file and gives its DOM once scripts have run, and what they wrote to the console."""
    chromium = find_chromium()
    if chromium is None:
        pytest.skip("no Chromium found: set CHROMIUM to one, or put it on PATH")

    def open_page(path, fragment=""):
        profile = tmp_path_factory.mktemp("profile")
        command = [
            chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--enable-logging=stderr", f"--user-data-dir={profile}", "--window-size=1200,900",
            "--dump-dom", path.as_uri() + fragment,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
        return Dom(done.stdout), [line for line in done.stderr.splitlines() if "CONSOLE" in line]

    return open_page


def test_in_a_browser_hostile_names_stay_text(hostile, browse):
    dom, console = browse(hostile[0] / "review" / "index.html")
    assert console == []
    assert dom.all("title")[0][1] == "Run"
    assert len(dom.all("script")) == 1
    assert {attributes["src"].partition(",")[0] for attributes, _ in dom.all("img")} == {"data:image/webp;base64"}
    handlers = [key for _, attributes, _ in dom.elements for key in attributes if key.startswith("on")]
    assert handlers == []
    assert "<i>gone</i>.jpg" in dom.one("section", id="removed")[1]
    # What scripts make: the count, and filters that are hidden without them.
    assert dom.one(id="count")[1] == f"{len(HOSTILE)} of {len(HOSTILE)} images"
    assert "hidden" not in dom.one("form", id="filters")[0]
    assert sorted(dom.names()) == sorted(map(printable, HOSTILE))


def test_a_browser_runs_no_script_but_ours_and_fetches_nothing(hostile, browse, tmp_path):
    text = (hostile[0] / "review" / "index.html").read_text()
    extra = '<script>document.title="owned"</script><img src="http://127.0.0.1:9/x.png" onerror="document.title=1">'
    (tmp_path / "index.html").write_text(text.replace("<main>", f"<main>{extra}"))
    dom, console = browse(tmp_path / "index.html")
    assert dom.all("title")[0][1] == "Run"
    assert any("Content Security Policy" in line and "script" in line for line in console)
    assert any("Content Security Policy" in line and "127.0.0.1" in line for line in console)


def test_in_a_browser_a_link_filters_and_opens_an_image(hostile, browse):
    folder, records = hostile
    wanted = [
        one
        for one in records
        if one["split"] == "train" and any(a["class_id"] == 1 for a in one["annotations"]) and lowest(one) < 0.7
    ]
    assert 0 < len(wanted) < len(records)
    all_cards = Dom((folder / "review" / "index.html").read_text()).cards()
    first = next(card["id"] for card, text in all_cards if printable(wanted[0]["source"]) in text)
    fragment = f"#class=1&split=train&reason={LOW}&image={first}"
    dom, console = browse(folder / "review" / "index.html", fragment)
    assert console == []
    assert dom.one(id="count")[1] == f"{len(wanted)} of {len(records)} images"
    shown = [text for card, text in dom.cards() if "hidden" not in card]
    assert len(shown) == len(wanted)
    assert all(any(printable(one["source"]) in text for text in shown) for one in wanted)
    assert "open" in dom.one("dialog")[0]
    assert dom.one(id="lightbox-title")[1] == printable(wanted[0]["source"])
    assert dom.one(id="position")[1].endswith(f" of {len(wanted)}")
    rows = [text for attributes, text in dom.all("li") if attributes.get("tabindex") == "0"]
    assert len(rows) == len(wanted[0]["annotations"])
    assert CLASSES[1] in "".join(rows)


KEYS = """
const say = (...words) => { document.title += " " + words.join(" "); };
const box = document.getElementById("lightbox"), place = document.getElementById("position");
const name = () => place.textContent.split(" ")[0];
const press = (key) => box.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
document.querySelectorAll(".picture")[1].click();
say(box.open, name());
press("ArrowRight"); say(name());
press("ArrowLeft"); press("ArrowLeft"); press("ArrowLeft"); say(name());
press("m"); say(document.body.className);
press("m"); say(document.body.className || "masks");
box.close();
// The browser's own event comes later, perhaps after the page was handed over.
box.dispatchEvent(new Event("close"));
say(box.open, document.activeElement.closest(".card").id);
document.querySelector("button.chip").click();
say(location.hash);
"""


def test_keys_and_clicks_in_a_browser(hostile, browse, tmp_path):
    text = (hostile[0] / "review" / "index.html").read_text()
    text = re.sub("<meta http-equiv[^>]*>", "", text).replace("</body>", f"<script>{KEYS}</script></body>")
    (tmp_path / "index.html").write_text(text)
    dom, console = browse(tmp_path / "index.html")
    assert console == []
    last = len(HOSTILE)
    reason = Dom(text).all("button", class_="chip")[0][0]["data-reason"]
    expected = f"Run true 2 3 {last} plain masks false image-{last} #reason={reason}"
    assert dom.all("title")[0][1] == expected


def lowest(one):
    return min((a["confidence"] for a in one["annotations"]), default=1.0)


def test_without_scripts_names_are_escaped_and_links_lead_to_the_images(hostile, page):
    folder, records = hostile
    pictures = [attributes["href"] for attributes, _ in page.all("a", class_="picture")]
    paths = [os.fsdecode(unquote_to_bytes(urlsplit(href).path)) for href in pictures]
    reached = {(folder / "review" / path).resolve() for path in paths}
    assert reached == {(folder / one["split"] / "images" / one["file"]).resolve() for one in records}
    assert all(path.is_file() for path in reached)
    assert {tag for tag, _, _ in page.elements} <= {
        "html", "head", "meta", "title", "link", "style", "body", "header", "h1", "h2", "h3", "nav", "a", "b", "main",
        "section", "dl", "div", "dt", "dd", "table", "thead", "tbody", "tr", "th", "td", "i", "bdi", "svg", "path",
        "rect", "text", "span", "p", "form", "label", "select", "option", "input", "button", "output", "article", "img",
        "g", "ul", "li", "dialog", "script",
    }  # fmt: skip
    assert [alt for (attributes, _), alt in zip(page.all("img"), alts(page), strict=True) if not alt] == []


def alts(page):
    return [attributes["alt"] for attributes, _ in page.all("img")]


def test_nothing_points_to_a_network(hostile, page):
    policy = page.one("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy
    for _, attributes, _ in page.elements:
        for key in ("src", "href", "action", "srcset", "data", "xlink:href", "style"):
            assert re.match(r"\.\./(train|valid)/images/|#|data:|sheet_\d+\.png$|$", attributes.get(key) or "")
    files = "".join(page.one(tag)[1] for tag in ("style", "script"))
    assert not re.search(r"https?:|url\(|@import|//[a-z]", files.replace("// The", ""))


def test_counts_are_those_of_the_records(hostile, page):
    _, records = hostile
    objects = [(a["class_id"], one["split"]) for one in records for a in one["annotations"]]
    rows = table_rows(page, "Class", "Confidence")
    for class_id, name in enumerate(CLASSES):
        by_split = [sum(pair == (class_id, split) for pair in objects) for split in ("train", "valid")]
        images = sum(any(a["class_id"] == class_id for a in one["annotations"]) for one in records)
        assert rows[name][:4] == [*map(str, by_split), str(sum(by_split)), str(images)]
    assert rows["all"][2] == str(len(objects))
    values = [text for attributes, text in page.all("dd") if not attributes]
    tiles = dict(zip([text for _, text in page.all("dt")], values, strict=True))
    assert tiles["Images"] == str(len(records)) and tiles["Objects"] == str(len(objects))
    assert tiles["Images without objects"] == str(sum(not one["annotations"] for one in records))
    removed = table_rows(page, "Reason", "Objects")
    assert removed["same object found twice, in one class"] == ["2", "1"]
    assert removed["<b>new reason"] == ["1", "1"]
    assert removed["overlap with a better object (NMS)"] == ["5", ""]
    quarantined = table_rows(page, "ImageReason")
    assert quarantined == {printable(f"{name}.broken"): [printable(f"cannot be read: {name}")] for name in HOSTILE}
    polygons = table_rows(page, "Class", "Worst IoU")
    values = [a["polygon_iou"] for one in records for a in one["annotations"]]
    assert polygons["all"] == [str(len(values)), f"{np.mean(values):.4f}", "0.9000", str(values.count(0.9))]


def test_histograms_are_those_of_the_records(hostile, page):
    _, records = hostile
    annotations = [a for one in records for a in one["annotations"]]
    titles = Counter()
    for number, (attributes, _) in enumerate(page.all("svg", class_="chart")):
        assert attributes["role"] == "img" and attributes["aria-label"]
        if number < 2:
            titles += bars(page, number)
    for low in range(20):
        own = sum(low == min(int(a["confidence"] * 20), 19) for a in annotations)
        assert titles[f"{low / 20:.2f} to {(low + 1) / 20:.2f}"] == own
    for low in (8, 16):
        own = sum(low <= math.sqrt(a["area"]) < 2 * low for a in annotations)
        assert own and titles[f"{low} to {2 * low} px"] == own


def bars(page, number):
    """Bar labels of a chart with their counts."""
    places = [index for index, (tag, attributes, _) in enumerate(page.elements) if attributes.get("class") == "chart"]
    inside = page.elements[places[number] : places[number + 1]]
    pairs = [text.rpartition(": ") for tag, _, text in inside if tag == "rect"]
    return Counter({label: int(count) for label, _, count in pairs})


def table_rows(page, *headings):
    """Of the table with these headings: first cell -> the texts of the others."""
    rows, wanted, current = {}, False, None
    for tag, attributes, text in page.elements:
        if tag == "table":
            wanted = False
        elif tag == "thead":
            wanted = all(heading in text for heading in headings)
        elif wanted and attributes.get("scope") == "row":
            current = rows.setdefault(text.strip(), [])
        elif wanted and tag == "td":
            current.append(text.strip())
    return rows


def test_images_stand_by_doubt(hostile, page):
    _, records = hostile
    by_name = {printable(one["source"]): sum(reason.points for reason in assess(one).reasons) for one in records}
    points = [by_name[name] for name in page.names()]
    assert points == sorted(points, reverse=True) and len(set(points)) > 4
    for (card, text), name in zip(page.cards(), page.names(), strict=True):
        assert f"doubt {by_name[name]:.2f}" in text
        [own] = [one for one in records if printable(one["source"]) == name]
        assert card["data-reasons"].split() == [reason.key for reason in assess(own).reasons]


def test_reasons():
    def found(*annotations):
        return {reason.key: (reason.points, reason.detail) for reason in assess(record("a", annotations)).reasons}

    fine = {"confidence": 0.9, "source": "both"}
    assert found(box(5, 5, 9, 9, **fine)) == {}
    assert found() == {EMPTY: (0.3, "no objects")}
    assert found(box(5, 5, 9, 9, confidence=0.35)) == {LOW: (0.5, "lowest confidence 0.35")}
    alone = found(box(5, 5, 9, 9, source="boxes"), box(30, 5, 9, 9, source="text"), box(50, 5, 9, 9), box(5, 40, 9, 9))
    assert alone == {DISAGREE: (0.1875, "1 by boxes alone, 1 by text alone")}
    assert found(box(5, 5, 9, 9), box(7, 5, 9, 9)) == {OVERLAPS: (0.4, "2 of 2 overlap")}
    assert found(box(5, 5, 30, 30), box(30, 30, 30, 25)) == {}
    for x, y in ((0, 5), (5, 0), (71, 5), (5, 51)):
        assert found(box(x, y, 9, 9), box(30, 30, 9, 9)) == {BORDER: (0.075, "1 of 2 cut by the border")}
    without_masks = [box(5, 5, 9, 9, segmentation=None), box(9, 5, 9, 9, segmentation=None)]
    assert OVERLAPS in found(*without_masks)
    # Boxes that overlap around masks that do not.
    upper = np.triu(np.ones((30, 30), dtype=bool), 2)
    image_hw = (60, 80)
    assert found(annotation(upper, x=9, y=9, image_hw=image_hw), annotation(upper.T, x=9, y=9, image_hw=image_hw)) == {}


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_overlaps_are_those_of_pycocotools(seed):
    from pycocotools import mask as coco

    rng = np.random.default_rng(seed)
    masks = [disc(rng, (60, 80)) for _ in range(5)]
    encoded = [coco.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    ious = coco.iou(encoded, encoded, [0] * 5) - np.eye(5)
    involved = int((ious.max(axis=0) >= 0.1).sum())
    details = [r.detail for r in assess(record("a", map(annotation, masks))).reasons if r.key == OVERLAPS]
    assert details == ([f"{involved} of 5 overlap"] if involved else [])


def disc(rng, image_hw):
    y, x = np.mgrid[: image_hw[0], : image_hw[1]]
    centre, radius = rng.uniform(0, image_hw), rng.uniform(4, 25)
    return (y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 80), st.sampled_from([1, 130, 2**24]))
@settings(max_examples=40, deadline=None)
def test_small_masks_cover_half_a_pixel(seed, height, width, band_pixels):
    mask = disc(np.random.default_rng(seed), (60, 80))
    rows, columns = np.arange(60) * height // 60, np.arange(80) * width // 80
    share = np.zeros((height, width))
    np.add.at(share, (rows[:, None], columns), mask)
    share /= np.outer(np.bincount(rows), np.bincount(columns))
    expected = share >= 0.5 if (share >= 0.5).any() else share > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "_BAND_PIXELS", band_pixels)
        crop, x, y = small_mask(annotation(mask), record("a"), (width, height))
    got = np.zeros((height, width), dtype=bool)
    got[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
    assert np.array_equal(got, expected)


def test_masks_of_20000_pixels_stay_small_in_memory(tmp_path):
    size = 20_000
    one, other = (
        {
            "class_id": 0,
            "bbox": [float(start), float(start), 8_000.0, 8_000.0],
            "area": 8_000.0**2,
            "segmentation": square_rle(start, 8_000, size),
            "confidence": 0.9,
            "data": {},
        }
        for start in (100, 2000)
    )
    large = record("large.jpg", [one, other], size=(size, size))
    tracemalloc.start()
    write(tmp_path, [large])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # One such mask, dense, takes 400 MB.
    assert peak < 100 * 2**20
    text = (tmp_path / "review" / "index.html").read_text()
    assert "2 of 2 overlap" in text and text.count('<path class="k0') == 2
    assert outlines(large, (1000, 1000))[0].rings[0].tolist() == [[5, 5], [5, 404], [404, 404], [404, 5]]


def square_rle(start, side, size):
    from pycocotools import mask as coco

    runs = [start * size + start, side, *[size - side, side] * (side - 1)]
    runs.append(size * size - sum(runs))
    packed = coco.frPyObjects({"size": [size, size], "counts": runs}, size, size)
    return {"size": [size, size], "counts": packed["counts"].decode()}


def test_equal_input_gives_equal_bytes_and_old_sheets_go(tmp_path):
    records = [record(f"{index}.jpg", [box(5, 5, 20, 20)]) for index in range(18)]
    save_images(tmp_path, records)
    first = {path.name: path.read_bytes() for path in write(tmp_path, records)}
    assert list(first) == ["index.html", "sheet_0001.png", "sheet_0002.png"]
    assert {path.name: path.read_bytes() for path in write(tmp_path, records)} == first
    write(tmp_path, records[:3])
    assert sorted(path.name for path in (tmp_path / "review").iterdir()) == ["index.html", "sheet_0001.png"]


class Weak(dict):
    """A record that can be watched."""


def test_of_many_images_the_most_doubtful_are_shown_and_none_is_kept(tmp_path):
    rng = np.random.default_rng(0)
    confidences = rng.permutation(np.linspace(0.5, 0.99, 60)).round(4).tolist()
    alive = weakref.WeakSet()
    most = passes = 0

    def records():
        nonlocal most, passes
        passes += 1
        for index, value in enumerate(confidences):
            found = [box(5, 5, 20, 20, confidence=value)] if index % 3 else []
            one = Weak(record(f"{index:02}.jpg", found))
            alive.add(one)
            most = max(most, len(alive))
            yield one
            del one

    # A WeakSet needs hashes, which dictionaries lack.
    Weak.__hash__ = object.__hash__
    write_review(tmp_path, records, lambda _: tmp_path / "none", ["ball"], {}, [], title="Many", limit=16)
    assert passes == 2 and most <= 3
    dom = Dom((tmp_path / "index.html").read_text())
    names = dom.names()
    filled = sorted((value, f"{index:02}.jpg") for index, value in enumerate(confidences) if index % 3)
    shown = [name for name in names if int(name[:2]) % 3]
    # Images without objects have 0.3 points, more than all others here, and yet take a quarter of the places only.
    assert len(names) == 16 and set(shown) == {name for _, name in filled[:12]}
    assert "The 16 most doubtful of 60 images" in dom.one("section", id="images")[1]
    assert dom.all("img") == [] and len(dom.all("span", class_="missing")) == 16
    assert [path.name for path in tmp_path.glob("*.png")] == ["sheet_0001.png"]


def test_ranking_knows_whether_both_looked():
    def ranked(*sources):
        ranking = Ranking(1)
        for index, source in enumerate(sources):
            one = record(f"{index}", [box(5, 5, 9, 9, source=source, confidence=0.6 if index else 0.9)])
            ranking.add(one, assess(one))
        return ranking.both_looked, set(ranking.chosen())

    assert ranked("boxes", "boxes") == (False, {1})
    assert ranked("boxes", "both") == (True, {0})
    assert ranked("boxes", "text") == (True, {0})


def test_text_alone_is_no_disagreement_where_boxes_did_not_look(tmp_path):
    records = [record(f"{index}.jpg", [box(5, 5, 9, 9, source="text")]) for index in range(2)]
    write(tmp_path, records)
    text = (tmp_path / "review" / "index.html").read_text()
    assert "alone found" in text and "by text alone<" not in text and "one side alone" not in text
    assert [card["data-reasons"] for card, _ in Dom(text).cards()] == ["", ""]


def test_nothing_to_show(tmp_path):
    [path] = write(tmp_path, [], classes=[])
    dom = Dom(path.read_text())
    assert dom.cards() == []
    assert "No image was labelled." in dom.one("p", id="none")[1]


def test_records_without_what_is_new_in_them(tmp_path):
    old = record("a.jpg", [box(5, 5, 9, 9, class_id=7)])
    del old["removed"], old["annotations"][0]["polygon_iou"]
    write(tmp_path, [old], classes=["ball"])
    assert "class 7" in (tmp_path / "review" / "index.html").read_text()


def test_a_crowd_is_drawn_in_part(tmp_path):
    rng = np.random.default_rng(0)
    places = rng.integers(1, 900, (700, 2)).tolist()
    confidences = rng.uniform(0.3, 1, 700).round(4).tolist()
    found = [box(x, y, 40, 40, (1000, 1000), confidence=c) for (x, y), c in zip(places, confidences, strict=True)]
    [path, _] = write(tmp_path, [record("crowd.jpg", found, size=(1000, 1000))])
    text = path.read_text()
    drawn = [float(value) for value in re.findall(r"<title>ball (0\.\d\d|1\.00) ", text)]
    assert len(drawn) == MAX_OBJECTS_DRAWN
    assert max(drawn) == pytest.approx(sorted(confidences)[MAX_OBJECTS_DRAWN - 1], abs=0.006)
    assert "700 objects, the 300 least certain drawn" in text
    assert path.stat().st_size < 200_000


def test_outlines_keep_holes_and_follow_the_mask():
    mask = np.zeros((60, 80), dtype=bool)
    mask[10:50, 10:60] = True
    mask[20:30, 20:30] = False
    [outline] = outlines(record("a", [annotation(mask)]), (80, 60))
    assert len(outline.rings) == 2
    assert sorted(ring.min() for ring in outline.rings)[0] == 10
    [boxed] = outlines(record("a", [box(8, 16, 40, 20, segmentation=None)]), (40, 30))
    assert boxed.rings[0].tolist() == [[4, 8], [24, 8], [24, 18], [4, 18]]


def test_boxes_without_masks_are_drawn_as_boxes(tmp_path):
    records = [record("a.jpg", [box(8, 16, 40, 20, segmentation=None)])]
    save_images(tmp_path, records)
    assert small_detections(records[0], (40, 30), ["ball"]).mask is None
    write(tmp_path, records)
    assert 'd="M8 16l40 0 0 20-40 0z"' in (tmp_path / "review" / "index.html").read_text()


def test_a_sheet_shows_where_the_objects_are(tmp_path):
    mask = np.zeros((300, 300), dtype=bool)
    mask[150:, 150:] = True
    records = [record("a.png", [annotation(mask)], size=(300, 300))]
    (tmp_path / "train" / "images").mkdir(parents=True)
    Image.new("RGB", (300, 300), (128, 128, 128)).save(tmp_path / "train" / "images" / "a.png")
    _, path = write(tmp_path, records)
    sheet = np.asarray(Image.open(path)).astype(int)
    changed = np.abs(sheet[4:356, 4:356] - 128).max(axis=2) > 10
    assert changed[185:345, 185:345].all()
    assert not changed[:150].any() and not changed[:, :150].any()


def test_captions_have_letters_beyond_ascii():
    empty = sv.Detections.empty()
    gray = np.full((50, 50, 3), 128, dtype=np.uint8)
    captions = [draw_cell(gray, empty, text, "")[360:] for text in ("Жук ünï.jpg", "??? ?n?.jpg", "Яма ünï.jpg")]
    assert captions[0].min() < 100
    assert not np.array_equal(captions[0], captions[1]) and not np.array_equal(captions[0], captions[2])
    long = draw_cell(gray, empty, "W" * 300 + ".jpg", "3 objects")[360:]
    assert (long[:, -5:] == 245).all()
    assert font_for("\U0010fffd", 12).getlength("a") > 0


def test_labels_have_letters_beyond_ascii():
    def drawn(name):
        detections = sv.Detections(
            xyxy=np.array([[50.0, 50.0, 150.0, 150.0]]), confidence=np.array([0.5]), class_id=np.array([0]),
            data={"class_name": np.array([name])},
        )  # fmt: skip
        return draw_detections(np.full((200, 200, 3), 128, dtype=np.uint8), detections)

    assert not np.array_equal(drawn("Жук"), drawn("Яма"))


def test_sheet_of_any_detections():
    masks = np.zeros((1, 100, 50), dtype=bool)
    masks[0, 20:60, 10:40] = True
    compact = sv.CompactMask.from_dense(masks, sv.mask_to_xyxy(masks), (100, 50))
    image = np.full((100, 50, 3), 90, dtype=np.uint8)
    sheets = [
        draw_sheet([(image, sv.Detections(sv.mask_to_xyxy(masks), mask, np.array([0.5]), np.array([0])), "a.jpg")])
        for mask in (masks, compact)
    ]
    assert sheets[0].shape == (386, 360, 3)
    assert np.array_equal(*sheets)


@pytest.mark.parametrize("text", ["abc", "a" * 50, "x/y" * 40])
def test_shortened_names_keep_both_ends(text):
    short = shorten(text, 20)
    assert len(short) <= 20
    assert short[0] == text[0] and short[-1] == text[-1]


def test_a_damaged_image_does_not_end_the_review(tmp_path):
    records = [record("a.jpg", [box(5, 5, 9, 9)]), record("b.jpg", [box(5, 5, 9, 9)])]
    save_images(tmp_path, records)
    (tmp_path / "train" / "images" / "a.jpg").write_bytes(b"\xff\xd8\xff")
    write(tmp_path, records)
    dom = Dom((tmp_path / "review" / "index.html").read_text())
    assert "cannot be shown" in dom.one("span", class_="missing")[1]
    assert len(dom.all("img")) == 1


def test_near_duplicates_across_splits_are_marked(hostile, page):
    items = [text for _, text in page.all("li")]
    marked = [text for text in items if text.startswith("in train and valid")]
    assert len(marked) == 1 and all(printable(name) in marked[0] for name in HOSTILE[:2])
    assert any("no longer there.jpg" in text for text in items)


def test_lines_of_a_journal_do(tmp_path):
    """Records come from JSON, in which undecodable bytes of a name are lone surrogates."""
    one = json.loads(json.dumps(record(os.fsdecode(b"\xff.jpg"), [box(5, 5, 9, 9)])))
    write(tmp_path, [one])
    assert r"\xff.jpg" in (tmp_path / "review" / "index.html").read_text()
