"""A Florence-2-large with random weights, in transformers layout.

The sizes are those of florence-community/Florence-2-large. The tokenizer is that of the small bundled Florence-2, whose
vocabulary is smaller than the model's. The end token's embedding is zero, so that no answer ever ends by itself: every
engine generates the same number of tokens.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from autodistill_sam3.bundled import bundled_path

IMAGE_SIZE = 768
# One more than 24 x 24 places, for the mean over them.
IMAGE_TOKENS = 577
VOCABULARY = 51290
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
_END = 2
_SPECIAL: dict[str, Any] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": _END, "decoder_start_token_id": _END}


def florence2_config(width: int = 1024, layers: int = 12, depths: tuple[int, ...] = (1, 1, 9, 1)) -> Any:
    """The configuration of Florence-2-large, or of one that is smaller by the arguments.

    Args:
        width: Of the language model; the image encoder ends at twice as many channels.
        layers: Of the language model's encoder, and of its decoder.
        depths: Blocks of the image encoder's four stages.
    """
    from transformers import Florence2Config

    heads = max(1, width // 64)
    return Florence2Config(
        vision_config={
            "depths": list(depths),
            "embed_dim": [width // 4, width // 2, width, 2 * width],
            "num_heads": [max(1, heads // 2 * factor) for factor in (1, 2, 4, 8)],
            "num_groups": [max(1, heads // 2 * factor) for factor in (1, 2, 4, 8)],
            "projection_dim": width,
        },
        text_config={
            "model_type": "bart",
            "vocab_size": VOCABULARY,
            "d_model": width,
            "encoder_layers": layers,
            "decoder_layers": layers,
            "encoder_attention_heads": heads,
            "decoder_attention_heads": heads,
            "encoder_ffn_dim": 4 * width,
            "decoder_ffn_dim": 4 * width,
            "max_position_embeddings": 4096,
            "forced_eos_token_id": None,
            "forced_bos_token_id": None,
            **_SPECIAL,
        },
        # Of the tokenizer that goes with it.
        image_token_id=4,
        **_SPECIAL,
    )


def write_random_florence2(folder: Path, config: Any | None = None) -> None:
    """Write a checkpoint folder with random weights: 0.8 billion parameters, 3.3 GB.

    Args:
        folder: A new folder.
        config: Of another size than Florence-2-large.
    """
    from transformers import Florence2ForConditionalGeneration

    part = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = Florence2ForConditionalGeneration(config or florence2_config())
        with torch.no_grad():
            model.get_input_embeddings().weight[_END].zero_()
    model.save_pretrained(part)
    _write_processor(part)
    part.replace(folder)


def _write_processor(folder: Path) -> None:
    bundled = bundled_path("models/shapes/florence2")
    for name in _TOKENIZER_FILES:
        shutil.copyfile(bundled / name, folder / name)
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    for name in ("preprocessor_config.json", "processor_config.json"):
        content = json.loads((bundled / name).read_text(encoding="utf-8"))
        images = content.get("image_processor", content)
        # 3: bicubic, as in the original.
        images.update(size=size, crop_size=size, image_seq_length=IMAGE_TOKENS, resample=3)
        if images is not content:
            content["post_processor_config"] = {"phrase_grounding": {}}
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    generation = {**_SPECIAL, "num_beams": 3, "no_repeat_ngram_size": 3, "early_stopping": True}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2), encoding="utf-8")
