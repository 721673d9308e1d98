"""Florence-2 phrase grounding on transformers' `Florence2ForConditionalGeneration`.

Each (image, prompt) pair is one sequence; the vision tower runs once per image, and all pairs decode in right-padded
greedy batches.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autodistill_sam3.devices import (
    Precision,
    autocast,
    autocast_dtype,
    cast_weights,
    full_precision,
    gpu_stage,
    select_device,
)
from autodistill_sam3.errors import CheckpointError, SettingError
from autodistill_sam3.grounding.answers import Answer, parse_answer
from autodistill_sam3.grounding.decoding import GreedyDecoder
from autodistill_sam3.grounding.token_rules import TokenRules
from autodistill_sam3.images import RGBImage
from autodistill_sam3.instances import Boxes
from autodistill_sam3.weights import load_image_processor, load_model, load_tokenizer

if TYPE_CHECKING:
    from transformers import BaseImageProcessor, Florence2ForConditionalGeneration, PreTrainedTokenizerBase

logger = logging.getLogger("autodistill_sam3")

# The wording that the model was trained on for caption-to-phrase grounding (transformers, processing_florence2.py).
TASK = "Locate the phrases in the caption: {prompt}"
MAX_PROMPT_TOKENS = 64
# Room for about 60 boxes of one prompt in one image.
MAX_NEW_TOKENS = 256
SEQUENCES_PER_PASS = 64
SEQUENCES_STEP = 8


class Florence2Grounder:
    """A `Grounder` that runs a Florence-2 checkpoint.

    Example:
        >>> from autodistill_sam3.weights import FLORENCE2, find_checkpoint
        >>> grounder = Florence2Grounder.load(find_checkpoint(FLORENCE2, "shapes"), device="cpu")
        >>> [boxes] = grounder.ground([np.full((60, 80, 3), 127, dtype=np.uint8)], ["red circle"])
        >>> boxes.xyxy.dtype
        dtype('float32')
    """

    def __init__(
        self,
        model: Florence2ForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: BaseImageProcessor,
        *,
        device: str | None = None,
        precision: Precision = "auto",
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> None:
        if max_new_tokens < 1:
            raise SettingError(f"Expected max_new_tokens to be at least 1, received {max_new_tokens}")
        self.max_new_tokens = max_new_tokens
        self.device = select_device(device)
        self._dtype = autocast_dtype(precision, self.device)
        rules = TokenRules.of(model.generation_config)
        self._model: Any = model.to(self.device)  # type: ignore[arg-type]  # transformers wraps it untyped
        self._tokenizer = tokenizer
        self._processor = image_processor
        # On a GPU in few sizes, since attention is prepared and a step captured anew for each.
        self._step = SEQUENCES_STEP if self.device.type == "cuda" else 1
        self._first_location_id: Any = tokenizer.convert_tokens_to_ids("<loc_0>")
        language = self._model.model.language_model
        towers = (self._model.model.vision_tower, self._model.model.multi_modal_projector)
        cast_weights([*towers, language.encoder, language.decoder], self._dtype)
        self._model.lm_head = _FullPrecisionHead(self._model.lm_head)
        self._decoder = GreedyDecoder(self._model, rules, self.device, self._dtype)

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        device: str | None = None,
        precision: Precision = "auto",
        max_new_tokens: int = MAX_NEW_TOKENS,
    ) -> Florence2Grounder:
        """Load a checkpoint folder in transformers layout (config, weights, tokenizer, image preprocessor).

        Args:
            folder: The checkpoint.
            device: Such as "cuda:1"; by default the best one there is.
            precision: "auto", "bf16", "fp16" or "fp32".
            max_new_tokens: Longest answer to one prompt; four tokens a box.

        Raises:
            CheckpointError: A file is damaged, a tensor is missing, unexpected or of another shape, or answers are to
                follow a rule that is not applied here.
            DeviceError: The device is not on this machine.
            SettingError: Answers are to have no token, or the precision is unknown.
        """
        from transformers import Florence2ForConditionalGeneration

        model = load_model(Florence2ForConditionalGeneration, folder)
        tokenizer, processor = load_tokenizer(folder), load_image_processor(folder)
        try:
            return cls(model, tokenizer, processor, device=device, precision=precision, max_new_tokens=max_new_tokens)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error

    @torch.inference_mode()
    def ground(
        self,
        images: Sequence[RGBImage],
        prompts: Sequence[str],
        wanted: Sequence[Sequence[int]] | None = None,
    ) -> list[Boxes]:
        """Boxes for every wanted prompt in every image; see `Grounder.ground`."""
        if wanted is None:
            wanted = [range(len(prompts))] * len(images)
        pairs = [(image, prompt) for image, asked in enumerate(wanted) for prompt in asked]
        if not pairs:
            return [Boxes.empty() for _ in images]
        asked = sorted({image for image, _ in pairs})
        with gpu_stage("Florence-2", self.device):
            visual = self._encode_images([images[image] for image in asked])
            texts = [self._cut(prompt) for prompt in prompts]
            answers: list[Answer] = []
            for start in range(0, len(pairs), SEQUENCES_PER_PASS):
                chunk = pairs[start : start + SEQUENCES_PER_PASS]
                padded = chunk + chunk[:1] * (-len(chunk) % self._step)
                image_index = torch.tensor([asked.index(image) for image, _ in padded], device=self.device)
                answers += self._answer(visual[image_index], [texts[prompt] for _, prompt in padded])[: len(chunk)]
        return list(_boxes_per_image(images, pairs, answers))

    def release(self) -> None:
        """Let go of memory that is kept between calls; see `Grounder.release`."""
        self._decoder.release()

    def _encode_images(self, images: Sequence[RGBImage]) -> torch.Tensor:
        """Visual tokens (B, V, C), from one pass of the vision tower."""
        pixels = self._processor(
            images=list(images), return_tensors="pt", device=str(self.device), input_data_format="channels_last"
        )["pixel_values"]
        with autocast(self.device, self._dtype):
            tokens: torch.Tensor = self._model.get_image_features(pixels.to(self.device)).pooler_output
        return tokens

    def _cut(self, prompt: str) -> str:
        """The prompt, shortened if it has more tokens than there are positions to spare."""
        tokens = self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"]
        if len(tokens) <= MAX_PROMPT_TOKENS:
            return prompt
        logger.warning(
            "Florence-2 is given %d tokens of a prompt; this one has %d and its end is ignored: %s",
            MAX_PROMPT_TOKENS,
            len(tokens),
            shorten(prompt, 80),
        )
        return str(self._tokenizer.decode(tokens[:MAX_PROMPT_TOKENS]))

    def _answer(self, visual: torch.Tensor, prompts: Sequence[str]) -> list[Answer]:
        """Greedy answers for (image, prompt) sequences; `visual` is (N, V, C)."""
        tokenizer = self._tokenizer
        sequences = [f"{tokenizer.bos_token}{TASK.format(prompt=prompt)}{tokenizer.eos_token}" for prompt in prompts]
        text = tokenizer(sequences, add_special_tokens=False, padding=True, return_tensors="pt").to(self.device)
        embeddings = self._model.get_input_embeddings()(text["input_ids"])
        sequence = torch.cat([visual.to(embeddings.dtype), embeddings], dim=1)
        visible = torch.ones(visual.shape[:2], dtype=torch.long, device=self.device)
        attention_mask = torch.cat([visible, text["attention_mask"]], dim=1)
        with autocast(self.device, self._dtype):
            encoded = self._model.model.language_model.encoder(inputs_embeds=sequence, attention_mask=attention_mask)
        tokens, log_probabilities = self._decoder.decode(encoded[0], attention_mask, self.max_new_tokens)
        return [
            parse_answer(ids, values, self._first_location_id)
            for ids, values in zip(tokens, log_probabilities, strict=True)
        ]


class _FullPrecisionHead(torch.nn.Module):
    """The vocabulary's logits without autocast: in bf16, neighbouring locations would tie and scores be 6 % off."""

    def __init__(self, head: torch.nn.Linear) -> None:
        super().__init__()
        self.head = head

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with full_precision(hidden_states.device):
            logits: torch.Tensor = self.head(hidden_states.float())
        return logits


def _boxes_per_image(
    images: Sequence[RGBImage], pairs: Sequence[tuple[int, int]], answers: Sequence[Answer]
) -> Iterator[Boxes]:
    for image_index, image in enumerate(images):
        height, width = image.shape[:2]
        scale = np.array([width, height, width, height], dtype=np.float32)
        answered = zip(pairs, answers, strict=True)
        own = [(prompt, answer) for (owner, prompt), answer in answered if owner == image_index]
        if not own:
            yield Boxes.empty()
            continue
        yield Boxes(
            xyxy=np.concatenate([answer.xyxy * scale for _, answer in own]),
            scores=np.concatenate([answer.scores for _, answer in own]),
            prompt_index=np.concatenate(
                [np.full(len(answer.scores), prompt, dtype=np.int64) for prompt, answer in own]
            ),
        )
