"""Full size: Meta's package used as its README shows, and this package, on one random `sam3.pt`.

    PYTHONPATH=tests python -m official.full_size --bpe-path bpe_simple_vocab_16e6.txt.gz --output docs/correctness.md

writes the checkpoint (3.4 GB, 32 layers, 1008 pixels, both halves) into a temporary folder, loads it in every way, asks
all of them the same, and prints how far the answers are from the reference's in fp32. It needs a GPU with 24 GB, or
half an hour on a CPU (`--device cpu --images 1`).
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest import mock

import numpy as np
import torch
from PIL import Image

from autodistill_sam3.benchmark.random_sam3 import write_random_sam3
from autodistill_sam3.convert import convert
from autodistill_sam3.images import load_image
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.segmentation import Backend, Segmenter, load_segmenter
from autodistill_sam3.segmentation.mask_head import mask_logits
from autodistill_sam3.segmentation.official_model import building, import_official
from autodistill_sam3.segmentation.official_package import contained

from . import full_size_report as report
from .narrow import Array, randomise

PROMPTS = ("red circle", "a person's hat on the left", "Café &amp; bar", "milk bottle", "日本の猫")
BOXES_PER_IMAGE = 10
IMAGES = Path(__file__).parents[2] / "examples" / "images"
# Above 1, 32 layers of random weights amplify rounding; far below, every image has the same answer.
GAIN = 1.0
# What `predict_inst` clamps the logits that it returns to.
CLAMP = 32.0
# Of the queries of a prompt, between this many and that many are kept by the threshold that is chosen.
FEWEST, MOST = 5, 40


@dataclass(frozen=True, eq=False)
class Answer:
    """What one way says of one image.

    Attributes:
        arrays: By the names of `report.ARRAYS`: the text outputs stacked over the prompts, the box outputs over boxes.
        texts: Per prompt, the masks (K, H, W) ``bool`` above its threshold; None if not asked.
        boxes: The masks of all boxes (N, H, W) ``bool``.
    """

    arrays: dict[str, Array]
    texts: list[Array]
    boxes: Array


@dataclass(frozen=True, eq=False)
class Question:
    """One image and what is asked of it.

    Attributes:
        image: (H, W, 3) RGB ``uint8``.
        boxes_xyxy: (N, 4) ``float32`` in pixels.
    """

    image: Array
    boxes_xyxy: Array


def questions(count: int) -> list[Question]:
    paths = sorted(IMAGES.glob("*.jpg"))[:count]
    return [make_question(load_image(path), seed) for seed, path in enumerate(paths)]


def make_question(image: Array, seed: int) -> Question:
    height, width = image.shape[:2]
    corners = np.sort(np.random.default_rng(seed).uniform(0, 1, (BOXES_PER_IMAGE, 2, 2)), axis=1).reshape(-1, 4)
    return Question(image, (corners * [width, height, width, height]).astype(np.float32))


def write_checkpoint(path: Path, bpe_path: Path) -> None:
    """A random `sam3.pt` in which no term is zero, of both halves."""
    write_random_sam3(path, bpe_path, lambda model: randomise(model, GAIN))


# The reference.


class Reference:
    """Meta's package as its README shows it, in fp32 or in the bf16 autocast that it sets up itself."""

    def __init__(self, checkpoint: Path, bpe_path: Path, device: str) -> None:
        with contextlib.ExitStack() as stack:
            # It runs on a CPU only with patches; on a GPU nothing is patched.
            self._context: Callable[[], Any] = (
                (lambda: contained(torch.device("cpu"))) if device == "cpu" else contextlib.nullcontext
            )
            builder = importlib.import_module("sam3.model_builder") if device != "cpu" else import_official()
            stack.enter_context(building(builder) if device == "cpu" else contextlib.nullcontext())
            self.model: Any = builder.build_sam3_image_model(
                bpe_path=str(bpe_path),
                device=device,
                checkpoint_path=str(checkpoint),
                load_from_HF=False,
                enable_inst_interactivity=True,
            )
        # For the time being out of the autocast that the tracker's constructor has entered.
        with contextlib.suppress(AttributeError):
            self.model.inst_interactive_predictor.model.bf16_context.__exit__(None, None, None)
        # Filled holes are not in the logits, and this package does not fill them.
        self.model.inst_interactive_predictor._transforms.max_hole_area = 0
        processors = importlib.import_module("sam3.model.sam3_image_processor")
        self.processor: Any = processors.Sam3Processor(self.model, device=device)

    def ask(self, question: Question, thresholds: Sequence[float] | None) -> tuple[Answer, list[float]]:
        """The answer; without thresholds, those that keep some queries are chosen and returned."""
        with self._context(), recorded(self.model) as outputs:
            state = self.processor.set_image(Image.fromarray(question.image))
            masks, chosen = [], []
            for index, prompt in enumerate(PROMPTS):
                self.processor.reset_all_prompts(state)
                self.processor.set_confidence_threshold(1.0)
                self.processor.set_text_prompt(prompt, state)
                chosen.append(choose_threshold(outputs[-1]) if thresholds is None else thresholds[index])
                self.processor.set_confidence_threshold(chosen[-1])
                outputs.pop()
                state = self.processor.set_text_prompt(prompt, state)
                found = state["masks"][:, 0].cpu().numpy()
                # Queries without a pixel are no instances.
                masks.append(found[found.any(axis=(1, 2))])
            boxes = [self.model.predict_inst(state, box=box, multimask_output=False) for box in question.boxes_xyxy]
        box_masks, iou, logits = (np.concatenate(parts) for parts in zip(*boxes, strict=True))
        arrays = stack_texts(outputs) | {"box mask logits": logits, "box IoU": iou}
        return Answer(arrays, masks, box_masks.astype(bool)), chosen


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[list[dict[str, Any]]]:
    """What `forward_grounding` returns inside."""
    outputs: list[dict[str, Any]] = []

    def record(**arguments: Any) -> dict[str, Any]:
        outputs.append(type(model).forward_grounding(model, **arguments))
        return outputs[-1]

    with mock.patch.object(model, "forward_grounding", record):
        yield outputs


def stack_texts(outputs: Sequence[dict[str, Any]]) -> dict[str, Array]:
    def stack(name: str) -> Array:
        return np.stack([output[name][0].float().cpu().numpy() for output in outputs])

    return {
        "text logits": stack("pred_logits")[..., 0],
        "presence logit": stack("presence_logit_dec")[..., 0],
        "text boxes": stack("pred_boxes_xyxy"),
        "text mask logits": stack("pred_masks"),
    }


def choose_threshold(output: dict[str, Any]) -> float:
    """In the middle of the widest gap between neighbouring scores, so that rounding decides about none."""
    scores = output["pred_logits"][0, :, 0].float().sigmoid() * output["presence_logit_dec"][0, 0].float().sigmoid()
    ordered = np.sort(scores.cpu().numpy())[::-1]
    gaps = ordered[:-1] - ordered[1:]
    rank = FEWEST - 1 + int(np.argmax(gaps[FEWEST - 1 : MOST - 1]))
    return float((ordered[rank] + ordered[rank + 1]) / 2)


# This package.


def ask_engine(
    segmenter: Segmenter[Any], asked: Sequence[Question], thresholds: Sequence[Sequence[float]]
) -> list[Answer]:
    """The answers of a segmenter; the images go through it together."""
    engine = cast(Any, segmenter)
    features = segmenter.encode([question.image for question in asked])
    raw = raw_official if hasattr(engine, "_processor") and hasattr(engine, "_ground") else raw_transformers
    answers = []
    for index, (arrays, question) in enumerate(zip(raw(engine, features, asked), asked, strict=True)):
        alone = segmenter.encode([question.image])
        [texts] = segmenter.segment_text(alone, PROMPTS, thresholds[index])
        [boxes] = segmenter.segment_boxes(alone, [as_boxes(question)])
        by_prompt = [
            texts.instances.select(texts.instances.prompt_index == prompt).masks.to_dense()
            for prompt in range(len(PROMPTS))
        ]
        answers.append(Answer(arrays, by_prompt, in_order(boxes, question)))
    return answers


def in_order(boxes: Instances, question: Question) -> Array:
    """The masks of all boxes; empty ones are not among the instances."""
    height, width = question.image.shape[:2]
    masks = np.zeros((len(question.boxes_xyxy), height, width), dtype=bool)
    masks[boxes.prompt_index] = boxes.masks.to_dense()
    return masks


def as_boxes(question: Question) -> Boxes:
    # Each box is its own prompt, so that its mask can be told apart.
    count = len(question.boxes_xyxy)
    return Boxes(question.boxes_xyxy, np.ones(count, np.float32), np.arange(count))


@torch.inference_mode()
def raw_transformers(engine: Any, features: Any, asked: Sequence[Question]) -> list[dict[str, Array]]:
    names = list(report.ARRAYS)
    parts: list[dict[str, list[Array]]] = [{name: [] for name in names} for _ in asked]
    for image_index, _, _, queries in engine._detect_pairs(features, PROMPTS):
        everything = torch.ones_like(queries.logits, dtype=torch.bool)
        with engine_autocast(engine):
            images = torch.from_numpy(image_index)
            masks = mask_logits(engine._model.detector_model, features.vision, images, queries, everything)
        values = (
            queries.logits,
            queries.presence_logits,
            queries.boxes_xyxy,
            masks.view(*everything.shape, *masks.shape[1:]),
        )
        for name, value in zip(names, values, strict=False):
            for image, row in zip(image_index.tolist(), value.float().cpu().numpy(), strict=True):
                parts[image][name].append(row)
    arrays = [{name: np.stack(rows) for name, rows in image.items() if rows} for image in parts]
    boxes: list[tuple[list[Array], list[Array]]] = [([], []) for _ in asked]
    for chunk, logits, iou in engine._decode_boxes(features, [as_boxes(question) for question in asked]):
        for image, part in enumerate(chunk):
            boxes[image][0].append(logits[image, : len(part)].clamp(-CLAMP, CLAMP).float().cpu().numpy())
            boxes[image][1].append(iou[image, : len(part)].float().cpu().numpy())
    return [
        texts | {"box mask logits": np.concatenate(logits), "box IoU": np.concatenate(iou)}
        for texts, (logits, iou) in zip(arrays, boxes, strict=True)
    ]


def engine_autocast(engine: Any) -> Any:
    from autodistill_sam3.devices import autocast

    return autocast(engine.device, engine._dtype)


@torch.inference_mode()
def raw_official(engine: Any, features: Any, asked: Sequence[Question]) -> list[dict[str, Array]]:
    arrays = []
    for index, question in enumerate(asked):
        with recorded(engine._model) as outputs:
            for prompt in PROMPTS:
                engine._ground(features.backbone[index], prompt)
        logits, iou = engine._predict_boxes(features.backbone[index], features.image_hw[index], question.boxes_xyxy)
        arrays.append(stack_texts(outputs) | {"box mask logits": logits.numpy(), "box IoU": iou.numpy()})
    return arrays


# Putting them side by side.


def compare(
    device: str, asked: Sequence[Question], bpe_path: Path, folder: Path, echo: Callable[[str], None]
) -> report.Report:
    checkpoint, converted = folder / "sam3.pt", folder / "converted"
    write_checkpoint(checkpoint, bpe_path)
    convert(checkpoint, "transformers", converted, bpe_path=bpe_path)
    echo("checkpoint written and converted")
    reference = Reference(checkpoint, bpe_path, device)
    # Importing the package has set it again.
    use_tf32(False)
    answers, thresholds = zip(*(reference.ask(question, None) for question in asked), strict=True)
    echo("reference answered")
    rows = report.Report(torch.cuda.get_device_name() if device != "cpu" else "CPU", len(asked), len(PROMPTS))
    if device != "cpu":
        # As importing it leaves them.
        use_tf32(True)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            rough = [reference.ask(question, limits)[0] for question, limits in zip(asked, thresholds, strict=True)]
        use_tf32(False)
        rows.add("reference", "bf16", answers, rough)
    del reference
    free()
    for title, path, backend in (
        ("engine, sam3.pt", checkpoint, "transformers"),
        ("engine, converted folder", converted, "transformers"),
        ('backend="sam3"', checkpoint, "sam3"),
    ):
        for precision in ("fp32",) if device == "cpu" else ("fp32", "bf16"):
            vocabulary = None if path.is_dir() else bpe_path
            segmenter = load_segmenter(
                path, backend=cast(Backend, backend), bpe_path=vocabulary, device=device, precision=cast(Any, precision)
            )
            rows.add(title, precision, answers, ask_engine(segmenter, asked, thresholds))
            echo(f"{title} in {precision} answered")
            del segmenter
            free()
    return rows


def use_tf32(value: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = value


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bpe-path", type=Path, required=True, help="bpe_simple_vocab_16e6.txt.gz")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--images", type=int, default=6, help="of the examples")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(
            options.device,
            questions(options.images),
            options.bpe_path,
            Path(folder),
            lambda text: print(text, flush=True),
        )
    print(rows.markdown())
    if options.output is not None:
        options.output.write_text(rows.markdown(), encoding="utf-8")
    return 0 if rows.passed() else 1


if __name__ == "__main__":
    raise SystemExit(main())
