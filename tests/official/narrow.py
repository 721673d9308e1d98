"""Meta's official SAM 3 on the CPU, narrow enough for a test, with random weights that leave no term at zero.

What the official package sets in the process is contained as in the package under test, whose patches run outermost.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from autodistill_sam3.segmentation.official_model import build_untrained
from autodistill_sam3.segmentation.official_package import contained, import_official

Array = npt.NDArray[Any]

# The builder writes its widths as literals; these replace them. 80 is the least that the parts allow together: more
# than the memory's 64 channels, a multiple of 16 for the mask decoder's half-width heads, and of GroupNorm's 8.
WIDTH = 80
# Video splits what it remembers of an object into pieces of 64 channels.
VIDEO_WIDTH = 128
IMAGE_SIZE, VIDEO_IMAGE_SIZE = 1008, 252
_PATCH = 14

# What else the builder's classes get instead of the builder's own arguments.
_OVERRIDES: Mapping[str, Mapping[str, object]] = {
    "ViT": {"embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 2.0, "global_att_blocks": (1,)},
    "VETextEncoder": {"width": 128, "heads": 2, "layers": 2},
    "TransformerEncoderFusion": {"num_layers": 2},
    "TransformerDecoder": {"num_layers": 2, "num_queries": 24},
    "PositionEmbeddingSine": {},
    "SequenceGeometryEncoder": {"num_layers": 2},
    "TransformerEncoderCrossAttention": {"num_layers": 1},
    "SimpleMaskDownSampler": {},
    "SimpleMaskEncoder": {},
}
# These rely on a default of 256.
_WIDTH_BY_DEFAULT = {"SimpleMaskDownSampler": "embed_dim", "SimpleMaskEncoder": "in_dim"}
_NARROWED = (
    *_OVERRIDES,
    "Sam3DualViTDetNeck",
    "TransformerEncoderLayer",
    "TransformerDecoderLayer",
    "TransformerDecoderLayerv2",
    "MultiheadAttention",
    "MLP",
    "DotProductScoring",
    "PixelDecoder",
    "UniversalSegmentationHead",
    "CXBlock",
    "RoPEAttention",
    "TransformerWrapper",
    "Sam3TrackerPredictor",
    "Sam3VideoInferenceWithInstanceInteractivity",
)

# Above 1, so that attention is peaked and outputs depend on image and prompt. At 1.5 the layers amplify rounding errors
# to 1e-4 of the output, and mask logits leave the range that `predict_inst` clamps to.
_GAIN = 1.15

# Size of what enters the image encoder's first norm.
_SMALL = 0.01

# At the official threshold some boxes take the single mask and some the best of three.
STABILITY_THRESHOLD = 0.98
# So that a prompt keeps some of its queries.
SCORE_THRESHOLD = 0.024

VIT_HEADS = 2
VIT_GLOBAL_LAYERS = (1,)
TEXT_HEADS = 2


@dataclass(frozen=True, eq=False)
class TextOutput:
    """What the official model says of one image and prompt.

    Attributes:
        logits: (Q,), `pred_logits`.
        presence_logit: (), `presence_logit_dec`.
        boxes_xyxy: (Q, 4) in 0..1.
        mask_logits: (Q, 288, 288).
        scores: (K,) of the queries above the processor's threshold.
        masks: (K, H, W) ``bool``, of the same queries in the image's frame.
    """

    logits: Array
    presence_logit: Array
    boxes_xyxy: Array
    mask_logits: Array
    scores: Array
    masks: Array


@dataclass(frozen=True, eq=False)
class BoxOutput:
    """What `predict_inst` says of N boxes in one image.

    Attributes:
        mask_logits: (N, 288, 288).
        iou: (N,).
        masks: (N, H, W) ``bool``; holes are not filled.
        stability: (N,), of the single mask; below the decoder's threshold the best of three is returned instead.
    """

    mask_logits: Array
    iou: Array
    masks: Array
    stability: Array


class OfficialImage:
    """The official model's view of one image: encode once, prompt many."""

    def __init__(self, processor: Any, image: Array) -> None:
        self._processor = processor
        with official_on_cpu():
            self._state: dict[str, Any] = processor.set_image(Image.fromarray(image))

    def text(self, prompt: str) -> TextOutput:
        """Prompt with text, through the official processor."""
        model = self._processor.model
        outputs: list[dict[str, Any]] = []

        def record(**arguments: Any) -> dict[str, Any]:
            outputs.append(type(model).forward_grounding(model, **arguments))
            return outputs[-1]

        with official_on_cpu(), mock.patch.object(model, "forward_grounding", record):
            self._processor.reset_all_prompts(self._state)
            state = self._processor.set_text_prompt(prompt, self._state)
        [output] = outputs
        return TextOutput(
            logits=output["pred_logits"][0, :, 0].numpy(),
            presence_logit=output["presence_logit_dec"][0, 0].numpy(),
            boxes_xyxy=output["pred_boxes_xyxy"][0].numpy(),
            mask_logits=output["pred_masks"][0].numpy(),
            scores=state["scores"].numpy(),
            masks=state["masks"][:, 0].numpy(),
        )

    def boxes(self, boxes_xyxy: Array) -> BoxOutput:
        """Prompt with each of (N, 4) boxes in pixels, through `predict_inst`."""
        model = self._processor.model
        decoder = model.inst_interactive_predictor.model.sam_mask_decoder
        stability: list[torch.Tensor] = []

        def record(mask_logits: torch.Tensor) -> torch.Tensor:
            stability.append(type(decoder)._get_stability_scores(decoder, mask_logits))
            return stability[-1]

        with official_on_cpu(), mock.patch.object(decoder, "_get_stability_scores", record):
            answers = [model.predict_inst(self._state, box=box, multimask_output=False) for box in boxes_xyxy]
        masks, iou, mask_logits = (np.concatenate(parts) for parts in zip(*answers, strict=True))
        return BoxOutput(mask_logits, iou, masks.astype(bool), torch.cat(stability)[:, 0].numpy())


class NarrowOfficial:
    """The narrow official model behind its own processor."""

    def __init__(self, bpe_path: Path, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: Any = _build(bpe_path)
        processors = importlib.import_module("sam3.model.sam3_image_processor")
        self.processor: Any = processors.Sam3Processor(self.model, device="cpu", confidence_threshold=SCORE_THRESHOLD)
        # `predict_inst` fills small holes in its full-size masks; the logits it returns are not affected.
        self.model.inst_interactive_predictor._transforms.max_hole_area = 0

    def image(self, image: Array) -> OfficialImage:
        """Encode an RGB ``uint8`` image of shape (H, W, 3)."""
        return OfficialImage(self.processor, image)

    def token_ids(self, prompts: Sequence[str]) -> list[list[int]]:
        """Token ids of each prompt, from the start to the end token, without padding."""
        text_encoder = self.model.backbone.language_backbone
        rows: Array = text_encoder.tokenizer(list(prompts), context_length=text_encoder.context_length).numpy()
        return [row[: int(row.argmax()) + 1].tolist() for row in rows]

    def checkpoint(self) -> dict[str, torch.Tensor]:
        """The weights under the names that `sam3.pt` has."""
        tracker = "inst_interactive_predictor.model."
        return {
            f"tracker.{name.removeprefix(tracker)}" if name.startswith(tracker) else f"detector.{name}": tensor
            for name, tensor in self.model.state_dict().items()
        }


def clip_vocabulary() -> Path:
    """CLIP's BPE merges, which the official package reads but does not carry; open_clip's wheel has them."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None and spec.origin is not None, "the tests need the package open_clip_torch"
    return Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz")


@contextlib.contextmanager
def official_on_cpu() -> Iterator[None]:
    """Let the official package run on a CPU inside; what it changes in the process is as before afterwards."""
    with contained(torch.device("cpu")):
        yield


@contextlib.contextmanager
def narrowed_builder(width: int = WIDTH, image_size: int = IMAGE_SIZE) -> Iterator[None]:
    """What the official builder builds inside is narrow, and of a smaller image if asked for."""
    builder = import_official()
    grid = image_size // _PATCH
    literals = ((256, width), (2048, 2 * width), (IMAGE_SIZE, image_size))
    sizes = (([IMAGE_SIZE // _PATCH] * 2, [grid] * 2), ([IMAGE_SIZE // _PATCH * 16] * 2, [grid * 16] * 2))
    with contextlib.ExitStack() as stack:
        for name in _NARROWED:
            overrides = dict(_OVERRIDES.get(name, {}))
            if name == "MLP":
                # The builder passes this layer ready-made, in full width.
                overrides["out_norm"] = torch.nn.LayerNorm(width)
            if name in _WIDTH_BY_DEFAULT:
                overrides[_WIDTH_BY_DEFAULT[name]] = width
            build = _narrowed(getattr(builder, name), overrides, [*literals, *sizes])
            stack.enter_context(mock.patch.object(builder, name, build))
        yield


def _build(bpe_path: Path) -> Any:
    with narrowed_builder():
        model = build_untrained(bpe_path)
    randomise(model)
    # Small inputs of the first norm make its epsilon count; the norm takes their size away again.
    trunk: Any = model.backbone.vision_backbone.trunk
    with torch.no_grad():
        trunk.patch_embed.proj.weight.mul_(_SMALL)
        trunk.pos_embed.mul_(_SMALL)
    return model


def _narrowed(
    build: Callable[..., object], overrides: Mapping[str, object], replaced: Sequence[tuple[object, object]]
) -> Callable[..., object]:
    def narrow(value: object) -> object:
        return next((new for old, new in replaced if type(value) is type(old) and value == old), value)

    def build_narrow(**arguments: object) -> object:
        return build(**{**{name: narrow(value) for name, value in arguments.items()}, **overrides})

    return build_narrow


@torch.no_grad()
def randomise(model: torch.nn.Module, gain: float = _GAIN) -> None:
    """Fill every parameter, also those that start at zero, one or 1e-6: a term left out must change the output."""
    norms = (torch.nn.LayerNorm, torch.nn.GroupNorm)
    for module in model.modules():
        is_norm = isinstance(module, norms) or type(module).__name__ == "LayerNorm2d"
        for name, parameter in module.named_parameters(recurse=False):
            if (is_norm and name == "weight") or name == "gamma":
                parameter.uniform_(0.5, 1.5)
            elif parameter.ndim < 2:
                parameter.normal_(std=0.1)
            elif isinstance(module, torch.nn.Embedding) or parameter.shape[0] == 1:
                parameter.normal_()
            else:
                parameter.normal_(std=gain * _fan_in(module, parameter) ** -0.5)


def _fan_in(module: torch.nn.Module, weight: torch.nn.Parameter) -> int:
    if isinstance(module, torch.nn.ConvTranspose2d):
        return weight.shape[0]
    return weight[0].numel()
