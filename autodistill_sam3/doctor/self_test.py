"""Labelling for real: a bundled scene with the bundled checkpoints, and one image through those of a run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from autodistill_sam3.bundled import bundled_path
from autodistill_sam3.categories import read_categories
from autodistill_sam3.devices import select_device
from autodistill_sam3.doctor.installation import REINSTALL
from autodistill_sam3.doctor.random_weights import (
    FLORENCE2_PARTS,
    SAM3_BOX_PARTS,
    SAM3_MEMORY_PARTS,
    SAM3_TEXT_PARTS,
    non_finite,
    untrained_parts,
)
from autodistill_sam3.doctor.report import Finding
from autodistill_sam3.doctor.settings import RunSettings, first_line
from autodistill_sam3.errors import AutodistillSAM3Error, CheckpointError
from autodistill_sam3.weights import FLORENCE2, SAM3, SHAPES, CheckpointKind, find_checkpoint, load_model, load_sam3

if TYPE_CHECKING:
    import supervision as sv
    import torch

    from autodistill_sam3.devices import Precision
    from autodistill_sam3.images import RGBImage
    from autodistill_sam3.segmentation import Backend

_finding = partial(Finding, "Self-test")

_SCENE = "scene_03.png"
# In float32 every object of the scene is found, with a confidence above 0.98: there is room for rounding.
_LEAST_F1 = 0.99

_WRONG_RESULTS = (
    "Reinstall torch, torchvision and transformers; if --device cpu is right, the GPU or its driver is wrong."
)
_OVERFLOW = "The numbers do not fit the precision (try --precision fp32), or the device is faulty (try --device cpu)."
_NO_MEMORY = "Label with --batch-size 1 or --prompting text, end what else uses the GPU, or choose another --device."
_SEE_ABOVE = f"See the sections above. If files of this package are missing: {REINSTALL}"
_UNKNOWN = "Look at the sections above; if they are in order, please report this with the whole output."


def check_results(run: RunSettings) -> Iterator[Finding]:
    """Label a bundled scene with the bundled checkpoints, then look at and run those that a run would take."""
    yield _attempt("shapes scene", lambda: _label_scene(run))
    try:
        checkpoint = find_checkpoint(SAM3, run.checkpoint, official=run.official)
    except CheckpointError:
        yield _finding(SAM3.title, "not run, there is no checkpoint", "info")
        return
    yield _attempt(SAM3.title, lambda: _run_sam3(run, checkpoint))
    if run.with_boxes:
        yield _attempt(FLORENCE2.title, lambda: _run_florence2(run))


def _attempt(title: str, test: Callable[[], Finding]) -> Finding:
    """The finding of a test, or what stopped it; the next one runs all the same."""
    import torch

    try:
        return test()
    except torch.cuda.OutOfMemoryError as error:
        return _finding(title, f"out of GPU memory: {first_line(error)}", "problem", _NO_MEMORY)
    except AutodistillSAM3Error as error:
        return _finding(title, first_line(error), "problem", _SEE_ABOVE)
    # What is looked for are faults that nobody foresaw.
    except Exception as error:
        return _finding(title, f"stopped by {type(error).__name__}: {first_line(error)}", "problem", _UNKNOWN)


# The bundled checkpoints.


def _label_scene(run: RunSettings) -> Finding:
    from autodistill_sam3.base_models import GroundedSAM3
    from autodistill_sam3.evaluation import evaluate_detections

    path, classes, truth = _scene()
    precision = cast("Precision", run.precision)
    prompts = read_categories()[SHAPES].ontology
    model = GroundedSAM3(prompts, checkpoint=SHAPES, device=run.device, precision=precision)
    started = time.perf_counter()
    found = model.predict(path)
    seconds = time.perf_counter() - started
    score = evaluate_detections({_SCENE: found}, {_SCENE: truth}, classes)[-1]
    value = (
        f"{score.matched} of {score.objects} objects found, {score.detections - score.matched} others, F1 "
        f"{score.f1:.2f}, mask IoU {score.mean_iou:.3f}, {seconds:.1f} s on {select_device(run.device)}"
    )
    if not score.f1 >= _LEAST_F1:
        return _finding("shapes scene", value, "problem", _WRONG_RESULTS)
    return _finding("shapes scene", value)


def _scene() -> tuple[Path, list[str], sv.Detections]:
    """The image, the classes, and what was drawn."""
    from autodistill_sam3.evaluation import load_truth

    truth_file = bundled_path("examples/ground_truth.coco.json")
    classes, truth = load_truth(truth_file, truth_file.parent)
    return bundled_path("examples/images") / _SCENE, classes, truth[_SCENE]


# The checkpoints of a run.


def _run_sam3(run: RunSettings, checkpoint: Path) -> Finding:
    from autodistill_sam3.segmentation import load_segmenter

    parts = SAM3_TEXT_PARTS | (SAM3_BOX_PARTS if run.with_boxes else {})
    weights = load_sam3(checkpoint, boxes=False).state_dict()
    if (wrong := _wrong_weights(SAM3, weights, parts)) is not None:
        return wrong
    untrained = "".join(f", but for the {part}" for part in untrained_parts(weights, SAM3_MEMORY_PARTS))
    del weights
    segmenter = load_segmenter(
        checkpoint,
        backend=cast("Backend", run.backend),
        bpe_path=run.bpe_path,
        boxes=run.with_boxes,
        device=run.device,
        precision=cast("Precision", run.precision),
    )
    started = time.perf_counter()
    wrong_outputs, found = _segment(segmenter, with_boxes=run.with_boxes)
    seconds = time.perf_counter() - started
    if wrong_outputs:
        return _finding(SAM3.title, f"one image gives {'; '.join(wrong_outputs)}", "problem", _OVERFLOW)
    return _finding(
        SAM3.title, f"weights finite and trained{untrained}; one image: {found}, {seconds:.1f} s, all finite"
    )


def _segment(segmenter: Any, *, with_boxes: bool) -> tuple[list[str], str]:
    """What is wrong with the answers to a text and a box of which the scene shows an object, and how many there are."""
    import numpy as np

    from autodistill_sam3.instances import Boxes

    image, prompt, box = _question()
    features = segmenter.encode([image])
    # No score is below it: every query's mask is computed.
    [text] = segmenter.segment_text(features, [prompt], [-1.0])
    wrong = [] if all(bool(tensor.isfinite().all()) for tensor in _tensors(features)) else ["non-finite features"]
    wrong += [] if np.isfinite([*text.instances.scores, *text.presence]).all() else ["non-finite scores for text"]
    wrong += [] if len(text.instances) else ["no mask for text"]
    found = f"{len(text.instances)} masks for text"
    if with_boxes:
        boxes = Boxes(box[None], np.ones(1, np.float32), np.zeros(1, np.int64))
        [instances] = segmenter.segment_boxes(features, [boxes])
        wrong += [] if np.isfinite(instances.scores).all() else ["a non-finite score for a box"]
        wrong += [] if len(instances) else ["no mask for a box"]
        found += f", {len(instances)} for a box"
    return wrong, found


def _run_florence2(run: RunSettings) -> Finding:
    import numpy as np
    from transformers import Florence2ForConditionalGeneration

    from autodistill_sam3.grounding.florence2 import Florence2Grounder
    from autodistill_sam3.weights import florence2_argument

    folder = find_checkpoint(FLORENCE2, florence2_argument(run.checkpoint, run.florence2_checkpoint))
    weights = load_model(Florence2ForConditionalGeneration, folder).state_dict()
    if (wrong := _wrong_weights(FLORENCE2, weights, FLORENCE2_PARTS)) is not None:
        return wrong
    grounder = Florence2Grounder.load(folder, device=run.device, precision=cast("Precision", run.precision))
    image, prompt, _ = _question()
    started = time.perf_counter()
    [boxes] = grounder.ground([image], [prompt])
    value = f"one image: {len(boxes)} boxes, {time.perf_counter() - started:.1f} s"
    if not (np.isfinite(boxes.xyxy).all() and np.isfinite(boxes.scores).all()):
        return _finding(FLORENCE2.title, f"{value}, not all finite", "problem", _OVERFLOW)
    if not len(boxes):
        return _finding(FLORENCE2.title, f"{value}, though it shows a {prompt}", "warning", _OVERFLOW)
    return _finding(FLORENCE2.title, f"weights finite and trained; {value}, all finite")


def _question() -> tuple[RGBImage, str, Any]:
    """An image, a prompt that it shows an object of, and the (4,) ``float32`` box of that object."""
    from autodistill_sam3.images import load_image

    path, classes, truth = _scene()
    class_ids = truth.class_id if truth.class_id is not None else [0]
    prompts = {name: prompt for prompt, name in read_categories()[SHAPES].prompts.items()}
    return load_image(path), prompts[classes[class_ids[0]]], truth.xyxy[0].astype("float32")


def _wrong_weights(
    kind: CheckpointKind, weights: Mapping[str, torch.Tensor], parts: Mapping[str, str]
) -> Finding | None:
    if broken := non_finite(weights):
        value = f"{len(broken)} tensors with non-finite values: {', '.join(broken[:3])}{', ...' if broken[3:] else ''}"
        return _finding(kind.title, value, "problem", f"The file is damaged; copy or download it again. {kind.help}")
    if random := untrained_parts(weights, parts):
        value = f"weights as random as before any training in: {', '.join(random)}"
        cure = f"The file is of an untrained model, or lost its weights when it was converted. {kind.help}"
        return _finding(kind.title, value, "problem", cure)
    return None


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """All tensors in nested dataclasses, dictionaries and sequences."""
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif is_dataclass(value):
        yield from _tensors([getattr(value, field.name) for field in fields(value)])
    elif isinstance(value, Mapping):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
