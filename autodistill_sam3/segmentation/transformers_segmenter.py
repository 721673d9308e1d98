"""SAM 3 on transformers' `Sam3VideoModel`, which holds the detector, the tracker and the one ViT that both share."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch

from autodistill_sam3.devices import (
    Precision,
    aside,
    autocast,
    autocast_dtype,
    cast_weights,
    follow,
    gpu_stage,
    mark,
    queue,
    queue_of,
    select_device,
)
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.queueing import one_ahead
from autodistill_sam3.segmentation.box_decoder import TrackerFeatures, decode_boxes, tracker_features
from autodistill_sam3.segmentation.checks import check_boxes, check_thresholds, finite
from autodistill_sam3.segmentation.compiling import can_compile, compiled
from autodistill_sam3.segmentation.detector import (
    Prompts,
    QueryOutput,
    detect,
    encode_texts,
    image_tokens,
)
from autodistill_sam3.segmentation.grouping import concatenate, group_by_image
from autodistill_sam3.segmentation.logits import MaskLogits
from autodistill_sam3.segmentation.mask_head import mask_logits
from autodistill_sam3.segmentation.memory import MemoryTracker
from autodistill_sam3.segmentation.segmenter import TextResult
from autodistill_sam3.segmentation.vision import Faster, VisionFeatures, encode_images, plain, preprocess
from autodistill_sam3.weights import clean_prompt, load_sam3, load_sam3_tokenizer, require_boxes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoModel

logger = logging.getLogger("autodistill_sam3")

MAX_PROMPT_TOKENS = 32
PAIRS_PER_PASS = 32
BOXES_PER_PASS = 32

_FULL_SIZE_PIXELS = 1008


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Features of B images; what is inside is the segmenter's business.

    Attributes:
        vision: The detector's view.
        image_hw: Height and width of each image in pixels.
    """

    vision: VisionFeatures
    image_hw: tuple[tuple[int, int], ...]


class _Pass(NamedTuple):
    """What the detector says of N pairs, perhaps not yet.

    Attributes:
        images: (N,), which image each pair belongs to.
        prompts: (N,), which prompt.
        mark: Behind it in the queue of a GPU.
        queries: What it says.
    """

    images: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.int64]
    mark: torch.cuda.Event | None
    queries: QueryOutput


class TransformersSegmenter:
    """A `Segmenter` that runs a `Sam3VideoModel` checkpoint.

    Example:
        >>> from autodistill_sam3.weights import SAM3, find_checkpoint
        >>> segmenter = TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cpu")
        >>> features = segmenter.encode([np.full((60, 80, 3), 127, dtype=np.uint8)])
        >>> [result] = segmenter.segment_text(features, ["red circle"], [0.5])
        >>> len(result.instances), result.instances.masks.shape
        (0, (0, 60, 80))
    """

    def __init__(
        self,
        model: Sam3VideoModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        device: str | None = None,
        precision: Precision = "auto",
    ) -> None:
        self.device = select_device(device)
        self._dtype = autocast_dtype(precision, self.device)
        self._model: Any = model.to(self.device)  # type: ignore[arg-type]  # transformers wraps it untyped
        cast_weights(_computing_in_autocast(self._model), self._dtype)
        self._faster: Faster = plain
        self._tokenizer = tokenizer
        self._image_size: int = self._model.config.detector_config.image_size
        self.mask_side: int = self._model.config.low_res_mask_size
        self._texts: dict[str, Prompts] = {}
        if self.device.type == "cpu" and self._image_size >= _FULL_SIZE_PIXELS:
            logger.warning("Full-size SAM 3 on a CPU: expect tens of seconds per image; a GPU takes well under one.")

    @classmethod
    def load(
        cls,
        checkpoint: Path,
        *,
        bpe_path: str | Path | None = None,
        boxes: bool = True,
        device: str | None = None,
        precision: Precision = "auto",
    ) -> TransformersSegmenter:
        """Load a checkpoint: a folder in transformers layout, or one of Meta's files.

        Args:
            checkpoint: What `find_checkpoint` found.
            bpe_path: The vocabulary, if it lies elsewhere; see `find_vocabulary`.
            boxes: Whether boxes will be segmented, for which some checkpoints lack the weights.
            device: Such as "cuda:1"; by default the best one there is.
            precision: "auto", "bf16", "fp16" or "fp32".

        Raises:
            CheckpointError: A file is damaged, a tensor is missing, unexpected or of another shape, or boxes are asked
                of a checkpoint without the tracker half.
            CheckpointNotFoundError: There is no vocabulary.
            DeviceError: The device is not on this machine.
            SettingError: The precision is unknown.
        """
        # Before gigabytes are read.
        autocast_dtype(precision, select_device(device))
        model = load_sam3(checkpoint, boxes=boxes)
        return cls(model, load_sam3_tokenizer(checkpoint, model, bpe_path), device=device, precision=precision)

    def compiled(self) -> Self:
        """This segmenter, with the same weights, running functions that `torch.compile` compiles when first needed.

        Each size of a batch and each number of prompts is compiled apart: it repays itself in long runs.
        """
        if not can_compile(self.device):
            return self
        segmenter = copy.copy(self)
        segmenter._faster = compiled
        return segmenter

    @torch.inference_mode()
    def encode(self, images: Sequence[RGBImage]) -> ImageFeatures:
        """One ViT pass for a batch of RGB ``uint8`` images of any sizes; see `Segmenter.encode`."""
        if not images:
            return ImageFeatures(VisionFeatures(torch.zeros(0, device=self.device), (), ()), ())
        # Copies from memory are waited for: behind a batch before, they would wait for that, too.
        with aside(self.device), gpu_stage("preprocess", self.device):
            pixels = preprocess(images, self._image_size, self.device)
            preprocessed = mark(self.device)
        follow(preprocessed, pixels)
        with gpu_stage("ViT", self.device), autocast(self.device, self._dtype):
            vision = encode_images(self._model.detector_model, pixels, self._faster)
        return ImageFeatures(vision, tuple((image.shape[0], image.shape[1]) for image in images))

    def segment_text(
        self, features: ImageFeatures, prompts: Sequence[str], min_scores: Sequence[float]
    ) -> list[TextResult]:
        """Every instance of each prompt that scores above the prompt's threshold; see `Segmenter.segment_text`."""
        return self.begin_text(features, prompts, min_scores)()

    @torch.inference_mode()
    def begin_text(
        self, features: ImageFeatures, prompts: Sequence[str], min_scores: Sequence[float]
    ) -> Callable[[], list[TextResult]]:
        """Queue what :meth:`segment_text` begins with; see `Segmenter.begin_text`."""
        check_thresholds(prompts, min_scores)
        passes = one_ahead(self._detect_pairs(features, prompts))
        return lambda: self._finish_text(features, np.array(min_scores, dtype=np.float32), passes)

    @torch.inference_mode()
    def _finish_text(
        self, features: ImageFeatures, thresholds: npt.NDArray[np.float32], passes: Iterator[_Pass]
    ) -> list[TextResult]:
        presence = np.zeros((len(features.image_hw), len(thresholds)), dtype=np.float32)
        found: list[list[Instances]] = [[] for _ in features.image_hw]
        for detected in passes:
            with aside(self.device, detected.mark):
                images, prompts, scores, logits = self._surviving(features, thresholds, detected, presence)
                with gpu_stage("masks", self.device):
                    for image, part in group_by_image(features.image_hw, "text", (images, prompts), scores, logits):
                        found[image].append(part)
        return [
            TextResult(concatenate(parts, image_hw, "text"), presence[image])
            for image, (parts, image_hw) in enumerate(zip(found, features.image_hw, strict=True))
        ]

    def _surviving(
        self,
        features: ImageFeatures,
        thresholds: npt.NDArray[np.float32],
        detected: _Pass,
        presence: npt.NDArray[np.float32],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32], torch.Tensor]:
        """Image, prompt, score and mask logits of the queries above their thresholds; fills in the presence."""
        queries, images, prompts = detected.queries, detected.images, detected.prompts
        # All that is decided here, in one transfer.
        scores = finite(torch.cat([queries.presence_logits.sigmoid()[:, None], queries.scores], dim=1))
        presence[images, prompts], scores = scores[:, 0], scores[:, 1:]
        keep = scores > thresholds[prompts, None]
        with gpu_stage("text heads", self.device), autocast(self.device, self._dtype):
            logits = mask_logits(
                self._model.detector_model, features.vision, torch.from_numpy(images), queries, torch.from_numpy(keep),
                self._faster,
            )  # fmt: skip
        owner = keep.nonzero()[0]
        return images[owner], prompts[owner], scores[keep], logits

    @torch.inference_mode()
    def detect(self, features: ImageFeatures, prompts: Sequence[str], min_scores: Sequence[float]) -> list[MaskLogits]:
        """As :meth:`segment_text`, but the masks stay what the model says, for those who go on computing with them."""
        check_thresholds(prompts, min_scores)
        thresholds = np.array(min_scores, dtype=np.float32)
        presence = np.zeros((len(features.image_hw), len(prompts)), dtype=np.float32)
        found = [[MaskLogits.empty(self.mask_side, self.device)] for _ in features.image_hw]
        for detected in self._detect_pairs(features, prompts):
            images, own, scores, logits = self._surviving(features, thresholds, detected, presence)
            for image in np.unique(images):
                at = np.flatnonzero(images == image)
                part = logits[torch.from_numpy(at).to(logits.device)].float()
                found[image].append(MaskLogits(part, scores[at], own[at]))
        return [MaskLogits.join(parts) for parts in found]

    @torch.inference_mode()
    def detect_boxes(self, features: ImageFeatures, boxes: Sequence[Boxes]) -> list[MaskLogits]:
        """As :meth:`segment_boxes`, but the masks stay what the model says; boxes in which nothing is found stay in."""
        require_boxes(self._model.tracker_model.no_memory_embedding is not None)
        check_boxes(features.image_hw, boxes)
        found: list[list[MaskLogits]] = [[] for _ in boxes]
        for chunk, logits, iou in self._decode_boxes(features, boxes):
            for image, part in enumerate(chunk):
                scores = part.scores * finite(iou[image, : len(part)])
                found[image].append(MaskLogits(logits[image, : len(part)], scores, part.prompt_index))
        return [MaskLogits.join([MaskLogits.empty(self.mask_side, self.device), *parts]) for parts in found]

    def tracker(self) -> MemoryTracker:
        """The half of the model that tracks.

        Raises:
            CheckpointError: The checkpoint lacks it: that of a detector alone, or SAM 3.1's.
        """
        model = self._model.tracker_model
        if model is None or getattr(model, "memory_attention", None) is None or model.no_memory_embedding is None:
            raise CheckpointError(
                "Expected a checkpoint with SAM 3's tracker and its memory, received one without: video needs sam3.pt "
                "or a folder made from it."
            )
        return MemoryTracker(self._model, self.device, self._dtype)

    @property
    def config(self) -> Any:
        """The checkpoint's `Sam3VideoConfig`."""
        return self._model.config

    @torch.inference_mode()
    def segment_boxes(self, features: ImageFeatures, boxes: Sequence[Boxes]) -> list[Instances]:
        """The mask of the object in each box; see `Segmenter.segment_boxes`."""
        require_boxes(self._model.tracker_model.no_memory_embedding is not None)
        check_boxes(features.image_hw, boxes)
        found: list[list[Instances]] = [[] for _ in features.image_hw]
        for chunk, logits, iou in self._decode_boxes(features, boxes):
            with gpu_stage("masks", self.device):
                for image, part in enumerate(chunk):
                    count = len(part)
                    scores = part.scores * finite(iou[image, :count])
                    indices = np.full(count, image), part.prompt_index
                    grouped = group_by_image(features.image_hw, "boxes", indices, scores, logits[image, :count])
                    found[image].extend(instances for _, instances in grouped)
        return [concatenate(parts, hw, "boxes") for parts, hw in zip(found, features.image_hw, strict=True)]

    def _detect_pairs(self, features: ImageFeatures, prompts: Sequence[str]) -> Iterator[_Pass]:
        """The detector over all pairs, in passes of bounded size, each queued when it is asked for."""
        images = len(features.image_hw)
        if not (images and prompts):
            return
        texts = self._embed(prompts)
        image_index, prompt_index = np.divmod(np.arange(images * len(prompts)), len(prompts))
        with gpu_stage("text heads", self.device), autocast(self.device, self._dtype):
            coarse, positions = features.vision.levels[-1], features.vision.positions[-1]
            tokens = image_tokens(self._model.detector_model, coarse, positions, self._faster)
        # Later passes may be asked for in another thread.
        stream = queue_of(self.device)
        # Passes of one size, since each size is compiled apart; the last one is padded with what it begins with.
        passes = math.ceil(len(image_index) / PAIRS_PER_PASS)
        size = math.ceil(len(image_index) / passes)
        for start in range(0, len(image_index), size):
            pairs = slice(start, start + size)
            count = len(image_index[pairs])
            with queue(self.device, stream):
                # On the device, where nothing has to be waited for.
                padded = torch.arange(start, start + size, device=self.device) % len(image_index)
                image, prompt = padded // len(prompts), padded % len(prompts)
                with gpu_stage("text heads", self.device), autocast(self.device, self._dtype):
                    output = detect(self._model.detector_model, image, texts[prompt], tokens, self._faster)
                event = mark(self.device)
            yield _Pass(image_index[pairs], prompt_index[pairs], event, output[:count])

    def _decode_boxes(
        self, features: ImageFeatures, boxes: Sequence[Boxes]
    ) -> Iterator[tuple[list[Boxes], torch.Tensor, torch.Tensor]]:
        """The box decoder over all images, in passes of bounded size: the boxes of each image, logits, IoU."""
        longest = max((len(image_boxes) for image_boxes in boxes), default=0)
        if not longest:
            return
        with gpu_stage("boxes", self.device), autocast(self.device, self._dtype):
            tracker: TrackerFeatures = tracker_features(self._model, features.vision)
        step = max(1, BOXES_PER_PASS // len(boxes))
        for start in range(0, longest, step):
            chunk = [image_boxes.select(slice(start, start + step)) for image_boxes in boxes]
            padded = np.zeros((len(boxes), max(len(part) for part in chunk), 4), dtype=np.float32)
            for row, part, (height, width) in zip(padded, chunk, features.image_hw, strict=True):
                row[: len(part)] = part.xyxy / np.array([width, height, width, height], dtype=np.float32)
            with gpu_stage("boxes", self.device), autocast(self.device, self._dtype):
                logits, iou = decode_boxes(self._model, tracker, torch.from_numpy(padded).to(self.device))
            yield chunk, logits, iou

    def _embed(self, prompts: Sequence[str]) -> Prompts:
        """Embeddings of the prompts; each is computed once in this object's life."""
        unknown = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._texts]
        if unknown:
            cleaned = [clean_prompt(prompt) for prompt in unknown]
            tokens = self._tokenize(
                cleaned, padding="max_length", max_length=MAX_PROMPT_TOKENS, truncation=True, return_tensors="pt"
            ).to(self.device)
            self._warn_of_truncation(cleaned)
            with autocast(self.device, self._dtype):
                texts = encode_texts(self._model.detector_model, tokens["input_ids"], tokens["attention_mask"])
            for index, prompt in enumerate(unknown):
                self._texts[prompt] = texts[torch.tensor([index])]
        known = [self._texts[prompt] for prompt in prompts]
        return Prompts(torch.cat([text.features for text in known]), torch.cat([text.mask for text in known]))

    def _tokenize(self, prompts: list[str], **keywords: Any) -> Any:
        # Meta's tokenizer knows no special tokens in a text: "<|endoftext|>" is read as it is written.
        return self._tokenizer(prompts, split_special_tokens=True, **keywords)

    def _warn_of_truncation(self, prompts: list[str]) -> None:
        for prompt, ids in zip(prompts, self._tokenize(prompts, verbose=False)["input_ids"], strict=True):
            if len(ids) > MAX_PROMPT_TOKENS:
                logger.warning(
                    "SAM 3 reads %d tokens of a prompt; this one has %d and its end is ignored: %s",
                    MAX_PROMPT_TOKENS,
                    len(ids),
                    shorten(prompt, 80),
                )


def _computing_in_autocast(model: Any) -> list[torch.nn.Module | None]:
    """The parts that are never asked to compute in full precision."""
    detector, tracker = model.detector_model, model.tracker_model
    return [
        detector.vision_encoder,
        detector.text_encoder,
        detector.text_projection,
        detector.geometry_encoder,
        detector.detr_encoder,
        detector.detr_decoder,
        detector.dot_product_scoring,
        detector.mask_decoder,
        model.tracker_neck,
        tracker.mask_decoder if tracker is not None else None,
        getattr(tracker, "memory_attention", None),
        getattr(tracker, "memory_encoder", None),
    ]
