"""Label awkward folders with autodistill's own `label()` and with this project's, and say what came out of each.

    python examples/robustness.py > docs/robustness.md

Both run around the same detector, which finds the coloured discs that this script draws. What they write is read back
with supervision's YOLO loader and compared with the drawn truth.
"""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import supervision as sv
from autodistill.detection import CaptionOntology, DetectionBaseModel
from autodistill.helpers import load_image as autodistills_load_image
from PIL import Image

from autodistill_sam3.base_models.base import LabelingModel
from autodistill_sam3.thresholds import Thresholds

Pixels = npt.NDArray[np.uint8]

CLASSES = {"yellow disc": "ball", "blue disc": "plate"}
PAPER, YELLOW, BLUE = (140, 140, 140), (250, 220, 40), (40, 60, 230)
# Colours that can occur -> class of the object, -1 for none. Gray images show yellow as 208 and blue as 73.
KNOWN_COLOURS = {
    PAPER: -1, (255, 255, 255): -1, (0, 0, 0): -1, YELLOW: 0, BLUE: 1, (208, 208, 208): 0, (73, 73, 73): 1,
}  # fmt: skip
# Parts of one object lie closer to each other than two objects do.
PART_DISTANCE = 4
# An object counts as labelled right from here.
DONE_IOU = 0.9
# How much more memory each image may take.
BOUNDED_MB = 1.0
# Mean difference of the pixels, up to which an image is the one drawn: JPEG and palettes change some.
MATCHING_DIFFERENCE = 8
KILLED_AFTER = 4
MESSAGE_LENGTH = 100


def main() -> None:
    if sys.argv[1:2] == ["--killed"]:
        label_and_be_killed(*sys.argv[2:])
    # Decoders complain about damaged files from C.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    # Imports what each case would import anew, and starts nothing that a fork would miss.
    ProjectModel(CLASSES)
    rows = [(case.name, *(outcome_apart(case, tool) for tool in TOOLS)) for case in all_cases()]
    versions = {name: metadata.version(name) for name in ("autodistill", "supervision")}
    print(INTRODUCTION.format(**versions, cases=len(rows), iou=DONE_IOU))
    print("| input | autodistill's `label()` | this project's |\n|---|---|---|")
    for name, theirs, ours in rows:
        print(f"| {name} | {theirs.as_cell()} | {ours.as_cell()} |")
    print("\n| verdict | autodistill | this project |\n|---|---|---|")
    for verdict in ("done", "lost", "wrong"):
        counts = [sum(row[tool].verdict == verdict for row in rows) for tool in (1, 2)]
        print(f"| {verdict} | {counts[0]} | {counts[1]} |")


INTRODUCTION = """# Awkward inputs

`python examples/robustness.py > docs/robustness.md` wrote this page. It draws {cases} folders of awkward images and
labels each with `label()` of autodistill {autodistill} and with this project's, around one detector that finds the
discs drawn in them. What was written is read with supervision {supervision}'s YOLO loader and compared with what was
drawn.

- **done**: every image that can be read is there once, with every object, in its class, at a mask IoU of at least
  {iou}, and no other. What more the row asks for holds.
- **lost**: images, objects or work are missing. What is there may be right.
- **wrong**: something is there that was not drawn so: another mask, class or split, other pixels, or too much memory.

A folder holds a plain JPEG and what the row names. autodistill takes `*.jpg` unless told otherwise, so it gets
`extension=""`, which takes all files, where the row's are called otherwise. This project's `label()` gets the folder,
and `recursive=True` where there are sub-folders.
"""


# --- The detector, and the two tools around it ------------------------------------------------------------------------


def find_discs(rgb: Pixels) -> sv.Detections:
    """Every connected patch of a known colour, as a detection with a mask."""
    height, width = rgb.shape[:2]
    nearest, class_of_pixel = np.full((height, width), np.inf, np.float32), np.full((height, width), -1, np.int8)
    for colour, class_id in KNOWN_COLOURS.items():
        distance = ((rgb.astype(np.float32) - np.array(colour, np.float32)) ** 2).sum(axis=2)
        class_of_pixel[distance < nearest] = class_id
        nearest = np.minimum(nearest, distance)
    masks, class_ids = [], []
    for class_id in range(len(CLASSES)):
        of_class = (class_of_pixel == class_id).astype(np.uint8)
        count, groups = cv2.connectedComponents(cv2.dilate(of_class, np.ones((PART_DISTANCE + 1,) * 2, np.uint8)))
        masks += [(groups == group) & (of_class == 1) for group in range(1, count)]
        class_ids += [class_id] * (count - 1)
    stacked = np.array(masks, bool).reshape(len(masks), height, width)
    return sv.Detections(
        xyxy=sv.mask_to_xyxy(stacked).astype(np.float32).reshape(-1, 4),
        mask=stacked,
        class_id=np.array(class_ids, int),
        confidence=np.linspace(0.9, 0.6, len(masks)).astype(np.float32),
    )


class AutodistillModel(DetectionBaseModel):
    """The detector as any plugin of autodistill would have it."""

    def __init__(self, classes: dict[str, str], on_predict: Callable[[], None] = lambda: None) -> None:
        super().__init__(CaptionOntology(classes))
        self.on_predict = on_predict

    def predict(self, input: str | npt.NDArray[Any] | Image.Image) -> sv.Detections:
        self.on_predict()
        return find_discs(autodistills_load_image(input, return_format="cv2")[..., ::-1])

    def label_folder(self, images: Path, output: Path, *, extension: str, **options: Any) -> object:
        options.pop("recursive", None)
        return self.label(str(images), extension, str(output), **options)


class ProjectModel(LabelingModel):
    """The detector as one of this project's models."""

    def __init__(self, classes: dict[str, str], on_predict: Callable[[], None] = lambda: None) -> None:
        super().__init__(CaptionOntology(classes), Thresholds(), "best", "cpu", "fp32")
        self.on_predict = on_predict

    def _begin(self, images: Sequence[Pixels]) -> Callable[[], list[sv.Detections]]:
        return lambda: self._find(images)

    def _find(self, images: Sequence[Pixels]) -> list[sv.Detections]:
        batch = [find_discs(image) for image in images]
        for found in batch:
            self.on_predict()
            found.data["prompt"] = np.array(list(self.table.prompts))[found.class_id]
            found.data["source"] = np.array(["text"] * len(found))
            found.class_id = self.table.class_ids(found.class_id)
        return batch

    def _identity(self) -> dict[str, Any]:
        return {"detector": "discs"}

    def _checkpoints(self) -> dict[str, str]:
        return {}

    def label_folder(self, images: Path, output: Path, *, extension: str, **options: Any) -> object:
        return self.label(images, output_folder=output, batch_size=1, progress=False, **options)


TOOLS: tuple[type[AutodistillModel] | type[ProjectModel], ...] = (AutodistillModel, ProjectModel)


# --- Scenes -----------------------------------------------------------------------------------------------------------


@dataclass
class Scene:
    """A drawn image and what is in it."""

    rgb: Pixels
    masks: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)

    def turned(self, turn: int) -> Scene:
        """The scene rotated by quarters, and mirrored from the fifth turn on."""
        return Scene(turn_array(self.rgb, turn), [turn_array(mask, turn) for mask in self.masks], self.class_ids)


def turn_array(array: npt.NDArray[Any], turn: int) -> npt.NDArray[Any]:
    rotated = np.rot90(array, turn % 4)
    return rotated[:, ::-1] if turn >= 4 else rotated


def blank(width: int, height: int) -> Scene:
    return Scene(np.full((height, width, 3), PAPER, np.uint8))


def add_disc(scene: Scene, class_id: int, x: float, y: float, radius: float, hole: float = 0, cut: int = 0) -> None:
    """Draw a disc, with a hole of a radius, or cut into two parts by a bar of a width."""
    rows, columns = np.mgrid[: scene.rgb.shape[0], : scene.rgb.shape[1]]
    distance = np.hypot(rows - y, columns - x)
    mask = (distance <= radius) & (distance >= hole) & (np.abs(columns - x) >= cut / 2)
    scene.rgb[mask] = (YELLOW, BLUE)[class_id]
    scene.masks.append(mask)
    scene.class_ids.append(class_id)


def photo(seed: int) -> Scene:
    """Three discs somewhere on paper; an image that no tool has trouble with."""
    rng = np.random.default_rng(seed)
    scene = blank(320, 240)
    for column, class_id in enumerate((0, 1, 0)):
        x, y = 60 + 100 * column + rng.integers(-12, 13), rng.integers(50, 190)
        add_disc(scene, class_id, x, y, rng.integers(20, 32))
    return scene


def with_small_discs(hole: float = 0) -> Scene:
    """Each takes a third of a percent of the image."""
    scene = photo(50)
    for column in range(4):
        add_disc(scene, column % 2, 40 + 70 * column, 12, 9, hole)
    return scene


def many_discs() -> Scene:
    scene = blank(800, 400)
    for index in range(200):
        add_disc(scene, index % 2, 20 + 40 * (index % 20), 20 + 40 * (index // 20), 12)
    return scene


def special(x: float = 160, y: float = 120, radius: float = 60, **shape: int) -> Scene:
    scene = blank(320, 240)
    add_disc(scene, 0, x, y, radius, **shape)
    return scene


def panorama() -> Scene:
    scene = blank(20_000, 20)
    for index in range(10):
        add_disc(scene, index % 2, 900 + 2_000 * index, 10, 7)
    return scene


# --- Cases ------------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """Files to draw into a folder, and what a dataset made of it should show.

    Attributes:
        name: What the table calls it.
        draw: Writes the awkward files into the folder and returns the scenes that they show.
        extension: Which files autodistill is told to take.
        options: Keywords of `label()`.
        run: Labels the folder.
        check: Does and looks at more, after the first run; returns what is at fault, or None.
        plain: How many plain photos lie beside the awkward files.
        classes: Prompts and their classes.
    """

    name: str
    draw: Callable[[Path], list[Scene]]
    extension: str = ".jpg"
    options: dict[str, Any] = field(default_factory=dict)
    run: Callable[[Attempt], None] = lambda attempt: attempt.label()
    check: Callable[[Attempt], Outcome | None] = lambda attempt: None
    plain: int = 1
    classes: dict[str, str] = field(default_factory=lambda: dict(CLASSES))


@dataclass
class Outcome:
    """What came of a case."""

    verdict: str
    what: str

    def as_cell(self) -> str:
        return f"**{self.verdict}**: {self.what}".replace("|", "\\|").replace("\n", " ")


@dataclass
class Attempt:
    """One tool on one case.

    Attributes:
        tool: The class of the model.
        case: The case.
        images: The input folder.
        output: The dataset's folder.
        truth: What the images of the folder show.
        predicted: Images that the detector saw in the run after the killed one.
    """

    tool: type[AutodistillModel] | type[ProjectModel]
    case: Case
    images: Path
    output: Path
    truth: list[Scene]
    predicted: int = 0

    def label(self, on_predict: Callable[[], None] = lambda: None, output: Path | None = None) -> None:
        """Run `label()`."""
        model = self.tool(self.case.classes, on_predict)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            model.label_folder(self.images, output or self.output, extension=self.case.extension, **self.case.options)


def outcome_apart(case: Case, tool: type[AutodistillModel] | type[ProjectModel]) -> Outcome:
    """The outcome, also if it is the end of the process."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(outcome_of(case, tool)))
    process.start()
    sender.close()
    try:
        outcome: Outcome = receiver.recv()
    except EOFError:
        process.join()
        outcome = Outcome("lost", f"everything, the process ended with {signal.Signals(-(process.exitcode or 0)).name}")
    process.join()
    return outcome


def outcome_of(case: Case, tool: type[AutodistillModel] | type[ProjectModel]) -> Outcome:
    """Draw the folder, label it, and judge what was written."""
    random.seed(0)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images = Path(scratch, "images")
        images.mkdir()
        truth = [photo(index) for index in range(case.plain)]
        for index, scene in enumerate(truth):
            save(scene, images / f"photo_{index}.jpg")
        truth += case.draw(images)
        attempt = Attempt(tool, case, images, Path(scratch, "output"), truth)
        try:
            case.run(attempt)
            return case.check(attempt) or judge(attempt.output, truth, case.classes)
        # Whatever ends a run is an entry of the table.
        except Exception as error:
            return Outcome("lost", f"everything, {short(error, scratch)}")


def short(error: BaseException, scratch: str) -> str:
    """An exception in one line."""
    name = type(error).__name__
    if type(error).__module__ != "builtins":
        name = f"{type(error).__module__}.{name}"
    message = re.sub(r"\s+", " ", str(error).replace(scratch, "")).strip()
    if len(message) > MESSAGE_LENGTH:
        message = message[:MESSAGE_LENGTH].rsplit(" ", 1)[0] + " …"
    return f"`{name}`: {message}".replace("<", "&lt;")


# --- Reading back -----------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """An image of a dataset as a trainer gets it."""

    path: Path
    rgb: Pixels
    masks: list[npt.NDArray[np.bool_]]
    class_names: list[str]


def read_dataset(output: Path) -> list[Entry]:
    """All images and labels, through supervision."""
    entries = []
    for split in ("train", "valid"):
        if not (output / split / "images").is_dir():
            continue
        dataset = sv.DetectionDataset.from_yolo(
            images_directory_path=str(output / split / "images"),
            annotations_directory_path=str(output / split / "labels"),
            data_yaml_path=str(output / "data.yaml"),
            force_masks=True,
        )
        for path, bgr, found in dataset:
            names = [dataset.classes[class_id] for class_id in found.class_id] if len(found) else []
            entries.append(Entry(Path(path), bgr[..., ::-1], list(found.mask) if len(found) else [], names))
    return entries


def judge(output: Path, truth: Sequence[Scene], classes: dict[str, str]) -> Outcome:
    """Compare a dataset with what was drawn."""
    entries = read_dataset(output)
    names = list(classes.values())
    found = [[entry for entry in entries if best_match(entry, truth) is scene] for scene in truth]
    tally = Tally()
    for scene, shown in zip(truth, found, strict=True):
        for entry in shown[:1]:
            tally.add(scene.turned(turn_of(entry, scene) or 0), entry, names)
    images, objects = sum(map(bool, found)), sum(len(scene.masks) for scene in truth)
    mean_iou = f", IoU {np.mean(tally.ious):.3f}" if tally.ious else ""
    what = f"{images} of {len(truth)} images, {tally.right} of {objects} objects{mean_iou}"
    extra_images = len(entries) - images
    faults = {"images of something else": extra_images, "wrong class": tally.wrong_class, "more objects": tally.extra,
              f"IoU below {DONE_IOU}": tally.bad_masks}  # fmt: skip
    what += "".join(f"; {name}: {count}" for name, count in faults.items() if count)
    with contextlib.suppress(FileNotFoundError):
        listed = len((output / "quarantine.jsonl").read_text().splitlines())
        what += f"; {listed} listed as unreadable" if listed else ""
    if any(faults.values()):
        return Outcome("wrong", what)
    return Outcome("done" if images == len(truth) and tally.right == objects else "lost", what)


@dataclass
class Tally:
    """Objects counted over images."""

    right: int = 0
    wrong_class: int = 0
    bad_masks: int = 0
    extra: int = 0
    ious: list[float] = field(default_factory=list)

    def add(self, scene: Scene, entry: Entry, names: Sequence[str]) -> None:
        """Count the objects of an image; each drawn one takes the label that fits it best."""
        ious = pairwise_iou(scene.masks, entry.masks)
        left = set(range(len(entry.masks)))
        for index, class_id in enumerate(scene.class_ids):
            label = max(left, key=lambda label: ious[index, label], default=None)
            if label is None or ious[index, label] == 0:
                continue
            left.remove(label)
            self.ious.append(float(ious[index, label]))
            is_class = entry.class_names[label] == names[class_id]
            is_mask = ious[index, label] >= DONE_IOU
            self.wrong_class += not is_class
            self.bad_masks += not is_mask
            self.right += is_class and is_mask
        self.extra += len(left)


def pairwise_iou(first: Sequence[npt.NDArray[np.bool_]], second: Sequence[npt.NDArray[np.bool_]]) -> Any:
    if not first or not second or first[0].shape != second[0].shape:
        return np.zeros((len(first), len(second)))
    ious = np.zeros((len(first), len(second)))
    boxes = [sv.mask_to_xyxy(np.array(masks)).astype(int) for masks in (first, second)]
    for row, column in np.argwhere(sv.box_iou_batch(*(np.add(box, (0, 0, 1, 1)) for box in boxes)) > 0):
        union = (first[row] | second[column]).sum()
        ious[row, column] = (first[row] & second[column]).sum() / union if union else 0
    return ious


def best_match(entry: Entry, truth: Sequence[Scene]) -> Scene | None:
    """The scene that an image shows, however it is turned."""
    fits = [(difference, index) for index, scene in enumerate(truth) for difference, _ in differences(entry, scene)]
    return truth[min(fits)[1]] if fits else None


def turn_of(entry: Entry, scene: Scene) -> int | None:
    return min(differences(entry, scene), default=(0, None))[1]


def differences(entry: Entry, scene: Scene) -> list[tuple[float, int]]:
    """Mean difference of the pixels and the turn, for the turns in which it is small."""
    found = []
    for turn in range(8):
        drawn = turn_array(scene.rgb, turn)
        if drawn.shape == entry.rgb.shape:
            difference = float(np.abs(drawn.astype(np.int16) - entry.rgb).mean())
            if difference < MATCHING_DIFFERENCE:
                found.append((difference, turn))
    return found


# --- What more is asked of some cases ---------------------------------------------------------------------------------


def check_pixels(attempt: Attempt) -> Outcome | None:
    changes = []
    for entry in read_dataset(attempt.output):
        scene = best_match(entry, attempt.truth)
        # The photos beside it are JPEGs, of which some pixels never were the drawn ones.
        if scene is not None and not any(scene is plain for plain in attempt.truth[: attempt.case.plain]):
            changes.append(int(np.abs(scene.rgb.astype(int) - entry.rgb).max()))
    if any(changes):
        return Outcome("wrong", f"pixels differ from the file's by up to {max(changes)} of 255")
    return None


def check_confidences(attempt: Attempt) -> Outcome | None:
    """One value per line of each label file, all as the detector gave them."""
    for labels in attempt.output.glob("*/labels/*.txt"):
        if labels.name.startswith("confidence-"):
            continue
        values = [float(line) for line in (labels.parent / f"confidence-{labels.name}").read_text().split()]
        if sorted(values, reverse=True) != [np.float32(value) for value in np.linspace(0.9, 0.6, 3)]:
            return Outcome("wrong", f"the confidences are {values}")
    return None


def splits_of(output: Path) -> dict[str, set[str]]:
    splits: dict[str, set[str]] = {}
    for path in output.glob("*/images/*"):
        splits.setdefault(path.stem, set()).add(path.parent.parent.name)
    return splits


def check_reruns(attempt: Attempt) -> Outcome | None:
    first = splits_of(attempt.output)
    attempt.label()
    attempt.label()
    return moved(first, splits_of(attempt.output))


def check_added(attempt: Attempt) -> Outcome | None:
    first = splits_of(attempt.output)
    for index in range(100, 104):
        save(photo(index), attempt.images / f"a_{index}.jpg")
        attempt.truth.append(photo(index))
    attempt.label()
    return moved(first, splits_of(attempt.output))


def moved(before: dict[str, set[str]], after: dict[str, set[str]]) -> Outcome | None:
    in_both = sum(len(splits) > 1 for splits in after.values())
    elsewhere = sum(before[name] != after.get(name) for name in before) - in_both
    if in_both or elsewhere:
        return Outcome("wrong", f"of {len(after)} images, {in_both} are in both splits and {elsewhere} changed theirs")
    return None


def check_names(attempt: Attempt) -> Outcome | None:
    names = sv.DetectionDataset.from_yolo(
        str(attempt.output / "train/images"), str(attempt.output / "train/labels"), str(attempt.output / "data.yaml")
    ).classes
    if len(names) > len(set(names)):
        return Outcome("wrong", f"data.yaml lists the classes {names}, and a model would learn them apart")
    return None


def kill_and_rerun(attempt: Attempt) -> None:
    """Label in a process that is killed in the middle, then again."""
    arguments = [attempt.tool.__name__, str(attempt.images), str(attempt.output), attempt.case.extension]
    killed = subprocess.run([sys.executable, __file__, "--killed", *arguments], check=False, stdout=subprocess.DEVNULL)
    if killed.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the first run ended with {killed.returncode}")
    predicted: list[None] = []
    attempt.label(lambda: predicted.append(None))
    attempt.predicted = len(predicted)


def label_and_be_killed(tool: str, images: str, output: str, extension: str) -> None:
    predicted: list[None] = []

    def on_predict() -> None:
        predicted.append(None)
        if len(predicted) > KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    chosen = next(model for model in TOOLS if model.__name__ == tool)
    case = Case("", lambda folder: [], extension)
    Attempt(chosen, case, Path(images), Path(output), []).label(on_predict)


def check_work_kept(attempt: Attempt) -> Outcome | None:
    again = attempt.predicted - (len(attempt.truth) - KILLED_AFTER)
    if again > 1:
        return Outcome("lost", f"{again} of {KILLED_AFTER} finished images were predicted again")
    return None


def check_memory(attempt: Attempt) -> Outcome | None:
    peaks = []
    for count in (2, 6):
        images = attempt.images.with_name(f"images_{count}")
        images.mkdir()
        for index in range(count):
            shutil.copy(attempt.images / "large.jpg", images / f"{index}.jpg")
        tracemalloc.start()
        replace(attempt, images=images, output=images.with_name(f"output_{count}")).label()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    each = (peaks[1] - peaks[0]) / 4 / 2**20
    if each > BOUNDED_MB:
        return Outcome("wrong", f"memory grows by {each:.1f} MB with each image of 1920 x 1080 and 10 objects")
    return None


# --- The cases --------------------------------------------------------------------------------------------------------


def save(scene: Scene, path: Path, mode: str = "RGB", file_format: str | None = None, **options: Any) -> Scene:
    options = {"quality": 95} | options if path.suffix.lower() in (".jpg", ".jpeg") else options
    Image.fromarray(scene.rgb).convert(mode).save(path, file_format, **options)
    return scene


def as_file(
    name: str, mode: str = "RGB", file_format: str | None = None, scene: Scene | None = None, **options: Any
) -> Callable[[Path], list[Scene]]:
    """Draws one image into one file."""

    def draw(folder: Path) -> list[Scene]:
        drawn = scene or photo(50)
        save(drawn, folder / name, mode, file_format, **options)
        rgb = (
            drawn.rgb if mode not in ("L", "LA") else np.asarray(Image.fromarray(drawn.rgb).convert("L").convert("RGB"))
        )
        return [Scene(rgb, drawn.masks, drawn.class_ids)]

    return draw


def as_bytes(name: str, content: bytes) -> Callable[[Path], list[Scene]]:
    """Writes a file that shows nothing."""

    def draw(folder: Path) -> list[Scene]:
        (folder / name).write_bytes(content)
        return []

    return draw


def as_files(*names: str) -> Callable[[Path], list[Scene]]:
    """Draws an image of its own into each file."""

    def draw(folder: Path) -> list[Scene]:
        scenes = []
        for index, name in enumerate(names):
            (folder / name).parent.mkdir(exist_ok=True)
            scenes.append(save(photo(60 + index), folder / name))
        return scenes

    return draw


def turned_by_exif(name: str) -> Callable[[Path], list[Scene]]:
    exif = Image.Exif()
    exif[0x0112] = 6

    def draw(folder: Path) -> list[Scene]:
        save(photo(50).turned(1), folder / name, exif=exif)
        return [photo(50)]

    return draw


def with_opencv(name: str, is_gray: bool = False) -> Callable[[Path], list[Scene]]:
    """16-bit files."""

    def draw(folder: Path) -> list[Scene]:
        scene = photo(50)
        if is_gray:
            scene.rgb = np.asarray(Image.fromarray(scene.rgb).convert("L").convert("RGB"))
        stored = scene.rgb[..., 0] if is_gray else scene.rgb[..., ::-1]
        cv2.imwrite(str(folder / name), stored.astype(np.uint16) * 257)
        return [scene]

    return draw


def palette(folder: Path) -> list[Scene]:
    Image.fromarray(photo(50).rgb).quantize(16).save(folder / "a.png")
    return [photo(50)]


def cut_out(folder: Path) -> list[Scene]:
    """Discs on white, and one that nobody sees: its pixels are transparent."""
    scene, stored = photo(50), photo(50)
    add_disc(stored, 0, 20, 20, 12)
    for pixels in (scene.rgb, stored.rgb):
        pixels[(pixels == PAPER).all(axis=2)] = 255
    alpha = np.logical_or.reduce(scene.masks).astype(np.uint8) * 255
    Image.fromarray(np.dstack([stored.rgb, alpha])).save(folder / "a.png")
    return [scene]


def animated(folder: Path) -> list[Scene]:
    frames = [Image.fromarray(photo(seed).rgb) for seed in (50, 51)]
    frames[0].save(folder / "a.gif", save_all=True, append_images=frames[1:])
    return [photo(50)]


def truncated(keep: float) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(photo(50).rgb).save(buffer, "JPEG")
    return buffer.getvalue()[: int(len(buffer.getvalue()) * keep)]


def bomb() -> bytes:
    """A PNG of a few bytes that would take 10 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


def link(target: str) -> Callable[[Path], list[Scene]]:
    def draw(folder: Path) -> list[Scene]:
        (folder / "a.jpg").symlink_to(target)
        return []

    return draw


def folder_named_like_an_image(folder: Path) -> list[Scene]:
    (folder / "a.jpg").mkdir()
    return []


def large(folder: Path) -> list[Scene]:
    scene = blank(1920, 1080)
    for index in range(10):
        add_disc(scene, index % 2, 150 + 180 * index, 300 + 40 * index, 80)
    return [save(scene, folder / "large.jpg")]


def one_pixel(folder: Path) -> list[Scene]:
    scene = photo(50)
    add_disc(scene, 1, 5, 5, 0.4)
    return [save(scene, folder / "a.png")]


def all_cases() -> list[Case]:
    """Every row of the table."""
    return [*files(), *damage(), *names(), *sizes_and_objects(), *runs()]


def files() -> list[Case]:
    return [
        Case("JPEG", as_file("a.jpg")),
        Case("JPEG, progressive", as_file("a.jpg", progressive=True)),
        Case("JPEG, gray", as_file("a.jpg", "L")),
        Case("JPEG, CMYK", as_file("a.jpg", "CMYK")),
        Case("JPEG, turned by EXIF", turned_by_exif("a.jpg")),
        Case("JPEG, suffix in capitals", as_file("a.JPG"), ""),
        Case("JPEG named .jpeg", as_file("a.jpeg"), ""),
        Case("PNG, turned by EXIF", turned_by_exif("a.png"), ""),
        Case("PNG, its pixels kept", as_file("a.png"), "", check=check_pixels),
        Case("PNG, 16 bit", with_opencv("a.png"), ""),
        Case("PNG, 16-bit gray", with_opencv("a.png", is_gray=True), ""),
        Case("PNG, palette", palette, ""),
        Case("PNG, something hidden where it is transparent", cut_out, ""),
        Case("PNG named .jpg", as_file("a.jpg", file_format="PNG")),
        Case("WebP", as_file("a.webp", lossless=True), ""),
        Case("BMP", as_file("a.bmp"), ""),
        Case("TIFF, 16 bit", with_opencv("a.tif"), ""),
        Case("GIF, animated", animated, ""),
    ]


def damage() -> list[Case]:
    return [
        Case("truncated JPEG", as_bytes("a.jpg", truncated(0.6))),
        Case("JPEG of which pixels are missing before its end", as_bytes("a.jpg", truncated(0.6) + b"\xff\xd9")),
        Case("JPEG with other bytes behind its end", trailing),
        Case("empty file named .jpg", as_bytes("a.jpg", b"")),
        Case("HTML named .jpg", as_bytes("a.jpg", b"<!doctype html><title>404</title>")),
        Case("PNG that would take 10 GB", as_bytes("a.png", bomb()), ""),
        Case("file that cannot be read", link("/proc/self/mem")),
        Case("link to nothing", link("/nowhere/a.jpg")),
        Case("link to itself", link("a.jpg")),
        Case("folder named a.jpg", folder_named_like_an_image),
    ]


def trailing(folder: Path) -> list[Scene]:
    scenes = as_file("a.jpg")(folder)
    with (folder / "a.jpg").open("ab") as file:
        file.write(b"more bytes")
    return scenes


def names() -> list[Case]:
    return [
        Case("a.png beside a.jpg", as_files("a.jpg", "a.png"), ""),
        Case("A.jpg beside a.jpg", as_files("a.jpg", "A.jpg")),
        Case("same names in sub-folders", as_files("left/a.jpg", "right/a.jpg"), options={"recursive": True}),
        Case("`x..jpg`", as_file("x..jpg")),
        Case("`x.y.jpg`", as_file("x.y.jpg")),
        Case("spaces, quotes and accents", as_file('it\'s "new" ünï.jpg')),
        Case("line break", as_file("a\nb.jpg")),
        Case("leading dash", as_file("-rf.jpg")),
        Case("comma and semicolon, `#` and `%`", as_file("a,b;c#d%20.jpg")),
        Case("name that is not UTF-8", as_file(os.fsdecode(b"caf\xe9.jpg"))),
        Case("name of 250 bytes", as_file("n" * 246 + ".jpg")),
    ]


def sizes_and_objects() -> list[Case]:
    panorama_scene = panorama()
    return [
        Case("1 x 1 pixel", as_file("a.png", scene=blank(1, 1)), ""),
        Case("20,000 x 20 pixels", as_file("a.png", scene=panorama_scene), ""),
        Case("no objects", as_file("a.jpg", scene=blank(320, 240))),
        Case("200 objects", as_file("a.jpg", scene=many_discs())),
        Case("objects below 1 % of the image", as_file("a.jpg", scene=with_small_discs())),
        Case("the same with holes", as_file("a.jpg", scene=with_small_discs(hole=4))),
        Case("object of one pixel", one_pixel, ""),
        Case("object with a hole", as_file("a.jpg", scene=special(hole=30))),
        Case("object in two parts", as_file("a.jpg", scene=special(cut=4))),
        Case("object cut by the border", as_file("a.jpg", scene=special(x=0, y=0))),
        Case("object as large as the image", as_file("a.jpg", scene=special(radius=400))),
        Case("two prompts for one class", as_file("a.jpg"), check=check_names,
             classes={"yellow disc": "ball", "blue disc": "ball"}),
    ]  # fmt: skip


def runs() -> list[Case]:
    return [
        Case(
            "`record_confidence=True`", as_file("a.jpg"), options={"record_confidence": True}, check=check_confidences
        ),
        Case("three runs into one folder", as_file("a.jpg"), check=check_reruns, plain=7),
        Case("a run after images were added", as_file("a.jpg"), check=check_added, plain=7),
        Case("killed, then run again", as_file("a.jpg"), run=kill_and_rerun, check=check_work_kept, plain=7),
        Case("memory for many images", large, check=check_memory),
    ]


if __name__ == "__main__":
    main()
