"""Building, saving and loading the small models in transformers layout."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoTokenizer,
    CLIPImageProcessor,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Sam3ImageProcessor,
    Sam3Processor,
    Sam3VideoModel,
)

from autodistill_sam3.training import florence2
from autodistill_sam3.training.batches import Batch, Plans, normalise, realise, tokenize
from autodistill_sam3.training.configs import (
    FLORENCE2_IMAGE_SIZE,
    FLORENCE2_IMAGE_TOKENS,
    GRID,
    IMAGE_SIZE,
    Recipe,
    florence2_config,
    sam3_config,
)
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD
from autodistill_sam3.training.initial import prepare_florence2, prepare_sam3
from autodistill_sam3.training.memory_start import start_matching, start_memory
from autodistill_sam3.training.tokenizers import CONTEXT_LENGTH, florence2_tokenizer, sam3_tokenizer

# So many show each class in some cells, whatever the seed.
MATCHING_SCENES = 64


def new_sam3(seed: int) -> tuple[Sam3VideoModel, PreTrainedTokenizerFast]:
    """A small SAM 3 with random weights."""
    torch.manual_seed(seed)
    tokenizer = sam3_tokenizer()
    model = Sam3VideoModel(sam3_config(tokenizer))
    prepare_sam3(model, *_typical_inputs(tokenizer))
    start_memory(model)
    return model, tokenizer


def _typical_inputs(tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalised images, and token ids and mask of a prompt for each, to set a model's scales by."""
    batch = _typical_scenes(8)
    images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
    return images, *tokenize(tokenizer, batch.texts, images.device, CONTEXT_LENGTH)


def _typical_scenes(count: int) -> Batch:
    plan = Plans(Recipe(steps=1, scenes=count, prompts=1, learning_rate=0.0), seed=0)[0]
    return realise(plan, IMAGE_SIZE, torch.device("cpu"))


def new_florence2(seed: int) -> tuple[Florence2ForConditionalGeneration, PreTrainedTokenizerFast]:
    """A small Florence-2 with random weights."""
    torch.manual_seed(seed)
    tokenizer = florence2_tokenizer()
    model = Florence2ForConditionalGeneration(florence2_config(tokenizer))
    prepare_florence2(model)
    return model, tokenizer


def load_sam3(folder: Path) -> tuple[Sam3VideoModel, PreTrainedTokenizerFast]:
    """A checkpoint in ``float32``; any missing or unexpected tensor is a `ValueError`."""
    loaded: Any = Sam3VideoModel.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    _check(report, folder)
    return model, _load_tokenizer(folder)


def with_memory(model: Sam3VideoModel, tokenizer: PreTrainedTokenizerFast) -> Sam3VideoModel:
    """The model with today's configuration and a tracker memory that starts anew."""
    fresh = Sam3VideoModel(sam3_config(tokenizer))
    mine, theirs = fresh.state_dict(), model.state_dict()
    fitting = {name: value for name, value in theirs.items() if name in mine and value.shape == mine[name].shape}
    fresh.load_state_dict(mine | fitting)
    start_memory(fresh)
    start_matching(fresh, _typical_scenes(MATCHING_SCENES))
    return fresh


def load_florence2(folder: Path) -> tuple[Florence2ForConditionalGeneration, PreTrainedTokenizerFast]:
    """A checkpoint in ``float32``; any missing or unexpected tensor is a `ValueError`."""
    loaded: Any = Florence2ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, report = loaded
    _check(report, folder)
    return model, _load_tokenizer(folder)


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise TypeError(f"Expected a fast tokenizer in {folder}, received {type(tokenizer).__name__}.")
    return tokenizer


def _check(report: dict[str, object], folder: Path) -> None:
    wrong = {name: keys for name, keys in report.items() if name.endswith("_keys") and keys}
    if wrong:
        raise ValueError(f"Expected every tensor of the model in {folder}, received {wrong}.")


def save_sam3(model: Sam3VideoModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint; an older one in the folder is replaced file by file, each at once.

    `save_pretrained` would write tracker names that `Sam3TrackerModel` does not find again; the plain state dict loads
    in all of transformers' classes.
    """
    part = _part(folder)
    model.config.architectures = ["Sam3VideoModel"]
    model.config.save_pretrained(part)
    _save_weights(model, part)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    mask_size = {"height": 4 * GRID, "width": 4 * GRID}
    images = Sam3ImageProcessor(size=size, mask_size=mask_size)
    Sam3Processor(image_processor=images, tokenizer=tokenizer, target_size=IMAGE_SIZE).save_pretrained(part)
    images.save_pretrained(part)
    _save_tokenizer(tokenizer, part)
    _publish(part, folder)


def save_florence2(model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write a checkpoint; an older one in the folder is replaced file by file, each at once."""
    part = _part(folder)
    model.config.architectures = ["Florence2ForConditionalGeneration"]
    model.config.save_pretrained(part)
    _save_weights(model, part)
    GenerationConfig(  # type: ignore[no-untyped-call]  # as transformers has it
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.eos_token_id,
        do_sample=False,
        num_beams=1,
    ).save_pretrained(part)
    size = {"height": FLORENCE2_IMAGE_SIZE, "width": FLORENCE2_IMAGE_SIZE}
    images: Any = CLIPImageProcessor(
        size=size,
        crop_size=size,
        do_center_crop=False,
        resample=2,
        image_mean=list(florence2.PIXEL_MEAN),
        image_std=list(florence2.PIXEL_STD),
        image_seq_length=FLORENCE2_IMAGE_TOKENS,
    )
    images.image_seq_length = FLORENCE2_IMAGE_TOKENS
    Florence2Processor(image_processor=images, tokenizer=tokenizer).save_pretrained(part)
    images.save_pretrained(part)
    _save_tokenizer(tokenizer, part)
    _publish(part, folder)


def _save_weights(model: nn.Module, folder: Path) -> None:
    """fp16 halves the size; tensors that share memory are written once."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous().cpu()
        for name, value in model.state_dict().items()
        if name not in tied
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Without the padding and truncation of its last call, which the file would keep."""
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.save_pretrained(folder)


def _part(folder: Path) -> Path:
    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def _publish(part: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    # Weights last: whoever waits for them finds the rest.
    for path in sorted(part.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        path.replace(folder / path.name)
    part.rmdir()
