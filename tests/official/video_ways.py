"""The ways to track that `video_full_size` compares: Meta's predictor, plain transformers, and this package."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import torch
from PIL import Image

from autodistill_sam3.devices import Precision, autocast, autocast_dtype
from autodistill_sam3.instances import compact_masks
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.video.association import TrackingRules
from autodistill_sam3.video.detections import Detecting
from autodistill_sam3.video.engine import TransformersVideoEngine
from autodistill_sam3.video.official_engine import OfficialVideoEngine
from autodistill_sam3.video.official_predictor import OfficialPredictor
from autodistill_sam3.video.step import FrameStep
from autodistill_sam3.video.tracks import FrameTracks

from .narrow import Array
from .narrow_video import ListClip

# The least probability that Meta's model makes a logit of.
_LEAST = 1e-3
# Without removal, so that random weights keep what they track; holes are filled by Meta's code alone where the package
# `kernels` is missing, so they are left in all.
COMPARABLE = {"hotstart_delay": 0, "new_det_thresh": 2.0, "det_nms_thresh": 0.0, "fill_hole_area": 0}


@dataclass(frozen=True)
class Limits:
    """Which detections of the first frame become objects: those above a threshold, at most so many, the best first."""

    threshold: float
    objects: int

    def apply(self, model: Any, **others: Any) -> None:
        """Set them, where both implementations have them under these names."""
        values = {"score_threshold_detection": self.threshold, "max_num_objects": self.objects, **COMPARABLE, **others}
        for name, value in values.items():
            if not hasattr(model, name):
                raise AttributeError(f"{type(model).__name__} has no {name}: give the way another `model`")
            setattr(model, name, value)


class Way(Protocol):
    """Something that tracks.

    Attributes:
        title: In tables.
        model: What `Limits` are set on, with Meta's names.
        once_per_class: Whether each text prompt's answers are a run of their own over the clip.
        limits_per_class: Whether `Limits` hold for each text prompt by itself.
    """

    title: str
    model: Any
    once_per_class: bool
    limits_per_class: bool

    def track(self, images: Sequence[Array], prompts: Sequence[str]) -> Iterator[Any]:
        """Whatever it says of each frame, in its own terms and as soon as it says it; nothing stays behind."""
        ...

    def tracks(self, answer: Any) -> FrameTracks:
        """One of these answers."""
        ...

    def close(self) -> None: ...


class OfficialWay:
    """Meta's predictor, asked as its README shows: the whole clip in one session, one text after the other."""

    once_per_class = limits_per_class = True

    def __init__(self, checkpoint: Path, bpe_path: Path, device: str, precision: Precision = "auto") -> None:
        self.title = f"Meta's predictor, {precision}"
        self._predictor = OfficialPredictor(checkpoint, bpe_path, device=device, precision=precision)
        self.model = self._predictor.model
        # Pixels as they are instead of in fp16, if a comparison asks for it.
        self.exact_pixels = False

    @contextlib.contextmanager
    def session(self, images: Sequence[Array]) -> Iterator[Callable[..., Any]]:
        """Ask in a session: `ask(type, ...)`."""
        frames = [Image.fromarray(image) for image in images]
        number = self._predictor.request({"type": "start_session", "resource_path": frames})["session_id"]
        if self.exact_pixels:
            state = self._predictor._predictor._get_session(number)["state"]
            state["input_batch"].img_batch = pixels(images, self.model.image_size).to(self._predictor.device)
        try:
            yield lambda kind, **request: self._ask({"type": kind, "session_id": number, **request})
        finally:
            self._predictor.request({"type": "close_session", "session_id": number})

    def _ask(self, request: dict[str, Any]) -> Any:
        stream = request["type"] == "propagate_in_video"
        return self._predictor.stream(request) if stream else self._predictor.request(request)

    def track(self, images: Sequence[Array], prompts: Sequence[str]) -> Iterator[Any]:
        with self.session(images) as ask:
            for prompt in prompts:
                ask("add_prompt", frame_index=0, text=prompt)
                yield from ask("propagate_in_video", propagation_direction="forward", start_frame_index=0)

    def tracks(self, answer: Any) -> FrameTracks:
        outputs = answer["outputs"]
        return as_tracks(
            answer["frame_index"], outputs["out_obj_ids"], outputs["out_probs"], outputs["out_binary_masks"]
        )

    def close(self) -> None:
        self.model = None
        self._predictor.close()


def converted_model(folder: Path, adapt: Callable[[dict[str, Any]], None]) -> tuple[Any, Any]:
    """A `Sam3VideoModel` of transformers' layout and its tokenizer."""
    from safetensors.torch import load_file
    from transformers import AutoTokenizer, Sam3VideoConfig, Sam3VideoModel

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    adapt(config)
    model = Sam3VideoModel(Sam3VideoConfig.from_dict(config))
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), AutoTokenizer.from_pretrained(folder, local_files_only=True)


class TransformersWay:
    """transformers' `Sam3VideoModel` and its own post-processing."""

    once_per_class = limits_per_class = False

    def __init__(
        self,
        folder: Path,
        device: str,
        precision: Precision = "auto",
        adapt: Callable[[dict[str, Any]], None] = lambda config: None,
        *,
        with_token: bool = False,
    ) -> None:
        """With Meta's token of the geometry encoder, if asked for, which plain transformers leaves out."""
        from transformers import Sam3VideoProcessor

        self.title = f"transformers' Sam3VideoModel, {precision}"
        model, self._tokenizer = converted_model(folder, adapt)
        self.model: Any = model.to(device)
        self._processor = Sam3VideoProcessor.__new__(Sam3VideoProcessor)
        self._device = torch.device(device)
        self._dtype = autocast_dtype(precision, self._device)
        if with_token:
            no_box = {
                "input_boxes": torch.zeros(1, 1, 4, device=device),
                "input_boxes_labels": torch.full((1, 1), -10, device=device),
            }
            self.model.detector_model.forward = partial(self.model.detector_model.forward, **no_box)

    def track(self, images: Sequence[Array], prompts: Sequence[str]) -> Iterator[Any]:
        session = self._session(images)
        for prompt in prompts:
            number = session.add_prompt(prompt)
            encoded = self._tokenizer(
                prompt, return_tensors="pt", padding="max_length", max_length=32, truncation=True
            ).to(self._device)
            session.prompt_input_ids[number] = encoded.input_ids
            session.prompt_attention_masks[number] = encoded.attention_mask
        outputs = self.model.propagate_in_video_iterator(session, start_frame_idx=0)
        while True:
            with autocast(self._device, self._dtype):
                output = next(outputs, None)
            if output is None:
                return
            found = self._processor.postprocess_outputs(session, output)
            # Its masks are on the GPU; all ways end with masks on the CPU.
            yield output.frame_idx, {name: found[name].cpu().numpy() for name in ("object_ids", "scores", "masks")}

    def _session(self, images: Sequence[Array]) -> Any:
        module = importlib.import_module("transformers.models.sam3_video.modeling_sam3_video")
        height, width = images[0].shape[:2]
        return module.Sam3VideoInferenceSession(
            video=pixels(images, self.model.config.image_size),
            video_height=height,
            video_width=width,
            inference_device=self._device,
            video_storage_device=self._device,
            inference_state_device=self._device,
            dtype=torch.float32,
        )

    def tracks(self, answer: Any) -> FrameTracks:
        frame_index, found = answer
        return as_tracks(frame_index, found["object_ids"], found["scores"], found["masks"])

    def close(self) -> None:
        self.model = None


class OfficialEngineWay:
    """Meta's predictor as `backend="sam3"` runs it, in parts."""

    once_per_class, limits_per_class = False, True

    def __init__(self, checkpoint: Path, bpe_path: Path, device: str, precision: Precision = "auto") -> None:
        self.title = f"backend='sam3', {precision}"
        self._engine = OfficialVideoEngine.load(checkpoint, bpe_path=bpe_path, device=device, precision=precision)
        self.model: Any = self._engine.predictor.model

    def track(self, images: Sequence[Array], prompts: Sequence[str]) -> Iterator[FrameTracks]:
        with self._engine.open(ListClip(list(images))) as session:
            session.set_texts(prompts)
            yield from session.propagate()

    def tracks(self, answer: FrameTracks) -> FrameTracks:
        return answer

    def close(self) -> None:
        self.model = None
        self._engine.close()


@dataclass
class OurLimits:
    """What `Limits` set of this package's engine, under Meta's names."""

    score_threshold_detection: float = 0.5
    max_num_objects: int = 10_000
    new_det_thresh: float = 0.7
    hotstart_delay: int = 15
    det_nms_thresh: float = 0.1
    fill_hole_area: int = 16
    # Filled while answers are recorded.
    seen: Recorded | None = None


class OurWay:
    """This package's engine, on Meta's file; with objects that begin as Meta's do, if asked for."""

    once_per_class = limits_per_class = False

    def __init__(
        self,
        folder: Path,
        device: str,
        precision: Precision = "auto",
        adapt: Callable[[dict[str, Any]], None] = lambda config: None,
        *,
        disjoint: bool = False,
    ) -> None:
        self.title = f"autodistill_sam3, {precision}"
        self._disjoint = disjoint
        model, tokenizer = converted_model(folder, adapt)
        self._segmenter = TransformersSegmenter(model, tokenizer, device=device, precision=precision)
        self.model: Any = OurLimits()

    def track(self, images: Sequence[Array], prompts: Sequence[str]) -> Iterator[FrameTracks]:
        limits = self.model
        rules = replace(
            TrackingRules.from_config(self._segmenter.config),
            # Above every IoU, and below none.
            nms_iou=limits.det_nms_thresh or 1.0,
            new_confidence=limits.new_det_thresh,
            hotstart_delay=limits.hotstart_delay,
            fill_area=limits.fill_hole_area,
            max_objects=limits.max_num_objects,
        )
        floors = (limits.score_threshold_detection,) * len(prompts)
        detecting = Detecting(tuple(prompts), tuple(range(len(prompts))), floors)
        engine = TransformersVideoEngine(self._segmenter, lambda prompts: detecting, rules)
        with contextlib.ExitStack() as stack:
            if self._disjoint:
                stack.enter_context(mock.patch.object(FrameStep, "begin", begin_disjoint))
            stack.enter_context(self._recorded(images[0], prompts[0]))
            session = stack.enter_context(engine.open(ListClip(list(images))))
            session.set_texts(prompts)
            yield from session.propagate()

    def tracks(self, answer: FrameTracks) -> FrameTracks:
        return answer

    def close(self) -> None:
        self.model = None

    @contextlib.contextmanager
    def _recorded(self, image: Array, prompt: str) -> Iterator[None]:
        seen = self.model.seen
        if seen is None:
            yield
            return
        # All queries, in their order.
        [found] = self._segmenter.detect(self._segmenter.encode([image]), [prompt], [-1.0])
        # With the floor that Meta's model has.
        yes, no = np.maximum(found.scores, _LEAST), np.maximum(1 - found.scores, _LEAST)
        seen.scores.append(yes / (yes + no))
        seen.mask_logits.append(found.logits.cpu().numpy())
        carry = FrameStep.carry

        def record(step: FrameStep, objects: Any) -> Any:
            carried = carry(step, objects)
            if objects:
                seen.tracked.setdefault(step.frame_index, []).append(carried.logits.cpu().numpy().copy())
            return carried

        with mock.patch.object(FrameStep, "carry", record):
            yield


def begin_disjoint(step: FrameStep, objects: Sequence[Any], logits: torch.Tensor) -> None:
    """`FrameStep.begin`, where each pixel is remembered of the last new object that claims it.

    So does `add_new_mask` of Meta's sam3/model/sam3_tracking_predictor.py; the pointers are of the whole masks.
    """
    if not objects:
        return
    decoded, large = step._from_detections(logits)
    masks = large > 0
    for place in range(len(masks) - 1):
        masks[place] &= ~masks[place + 1 :].any(0)
    memories = step.tracker.remember(step.maps, masks.float(), decoded.pointers, is_prompted=True)
    for own, memory in zip(objects, memories, strict=True):
        own.memory.condition(step.frame_index, memory)


def pixels(images: Sequence[Array], size: int) -> torch.Tensor:
    """(T, 3, size, size) ``float32`` in -1..1, resized as for images."""
    import torchvision.transforms.v2.functional as F

    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    if batch.shape[-2:] != (size, size):
        batch = F.resize(batch, [size, size], antialias=True)
    return batch.float().div_(255).sub_(0.5).div_(0.5)


def as_tracks(frame_index: int, ids: Array, scores: Array, masks: Array) -> FrameTracks:
    kept = np.flatnonzero(masks.any(axis=(1, 2)))
    count = len(kept)
    return FrameTracks(
        frame_index,
        ids[kept].astype(np.int64),
        compact_masks(((masks[place], 0, 0) for place in kept), masks.shape[1:]),
        scores[kept].astype(np.float32),
        np.zeros(count, np.int64),
        np.full(count, "text", dtype="<U6"),
    )


@dataclass(frozen=True, eq=False)
class Recorded:
    """What a model says inside, where it can be seen.

    Attributes:
        scores: (Q,) of the first frame's queries, with the presence; empty if not seen.
        mask_logits: (Q, h, w) of these.
        tracked: Per frame and run, (N, h, w) logits of the objects that were there before.
    """

    scores: list[Array]
    mask_logits: list[Array]
    tracked: dict[int, list[Array]]


@contextlib.contextmanager
def recorded(model: Any) -> Iterator[Recorded]:
    """Keep what passes through a model inside, if it has the parts that both implementations have."""
    seen = Recorded([], [], {})
    if isinstance(model, OurLimits):
        model.seen = seen
        yield seen
        model.seen = None
        return
    with contextlib.ExitStack() as stack:
        detector, name = (
            (getattr(model, "detector", None), "forward_grounding")
            if hasattr(model, "detector")
            else (getattr(model, "detector_model", None), "forward")
        )
        if detector is not None:
            stack.enter_context(mock.patch.object(detector, name, _detection(getattr(detector, name), seen)))
        if hasattr(model, "run_tracker_propagation"):
            propagate = model.run_tracker_propagation

            def record(*arguments: Any, **keywords: Any) -> Any:
                masks, scores = propagate(*arguments, **keywords)
                # A copy, since what is hidden by others is overwritten in place.
                seen.tracked.setdefault(keywords["frame_idx"], []).append(masks.float().cpu().numpy().copy())
                return masks, scores

            stack.enter_context(mock.patch.object(model, "run_tracker_propagation", record))
        yield seen


def _detection(detect: Callable[..., Any], seen: Recorded) -> Callable[..., Any]:
    def record(*arguments: Any, **keywords: Any) -> Any:
        output = detect(*arguments, **keywords)
        if not seen.scores:
            logits = output["pred_logits"][0].float()
            scores = logits.reshape(-1).sigmoid()
            if (presence := output.get("presence_logits")) is not None:
                joint = scores * presence[0].float().sigmoid()
                # Of Meta's model, the presence is in the logits already, made with this limit.
                yes, no = joint.clamp(min=_LEAST), (1 - joint).clamp(min=_LEAST)
                scores = yes / (yes + no)
            seen.scores.append(scores.cpu().numpy())
            seen.mask_logits.append(output["pred_masks"][0].float().cpu().numpy())
        return output

    return record
