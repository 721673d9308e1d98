"""Stage 3: Florence-2, caption-to-phrase grounding: a phrase and the location tokens of all its boxes."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Florence2ForConditionalGeneration, PreTrainedTokenizerFast

from autodistill_sam3.training.batches import Batch, normalise, tokenize
from autodistill_sam3.training.boxes import cxcywh_to_xyxy
from autodistill_sam3.training.configs import FLORENCE2_HIDDEN, FLORENCE2_IMAGE_SIZE, FLORENCE2_IMAGE_TOKENS
from autodistill_sam3.training.dense import LooksHead, cell_box_loss, cell_coverage, looks_losses, presence_map_loss
from autodistill_sam3.training.tokenizers import GROUNDING_TASK, LOCATION_BINS, first_location

# ImageNet's, as in Florence-2's own preprocessing.
PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
# Answers use every tenth location only. A small model cannot tell neighbouring thousandths apart; asked to, it spreads
# its probability over many, and the confidence of a good box would be near zero.
LOCATION_STEP = 10
IGNORED = -100
# Tokens of the longest phrase, and of the task with it.
PHRASE_LENGTH, SEQUENCE_LENGTH = 16, 28


def location_bins(boxes_xyxy: torch.Tensor) -> torch.Tensor:
    """Boxes in 0..1 -> location bins ``int64`` in 0..999 of the same shape.

    Example:
        >>> location_bins(torch.tensor([0.0, 0.1234, 0.5, 1.0])).tolist()
        [0, 120, 500, 999]
    """
    nearest = ((boxes_xyxy * LOCATION_BINS - 0.5) / LOCATION_STEP).round() * LOCATION_STEP
    return nearest.long().clamp(0, LOCATION_BINS - 1)


def boxes_from_bins(bins: torch.Tensor) -> torch.Tensor:
    """Location bins -> coordinates in 0..1: the middle of each bin, as `Florence2PostProcessor` has it."""
    return (bins.float() + 0.5) / LOCATION_BINS


def answer_labels(
    phrases: torch.Tensor,
    phrase_mask: torch.Tensor,
    boxes_xyxy: torch.Tensor,
    targets: torch.Tensor,
    tokenizer: PreTrainedTokenizerFast,
) -> torch.Tensor:
    """`<s>phrase<loc>...</s>` for each pair, boxes from left to right; `<s></s>` where nothing is to be found.

    Args:
        phrases: (N, T) token ids.
        phrase_mask: (N, T).
        boxes_xyxy: (N, K, 4) in 0..1.
        targets: (N, K) ``bool``, which boxes belong to the answer.
        tokenizer: For the ids of special tokens.

    Returns:
        (N, T + 4K + 2) ``int64``, padded with -100.
    """
    bins = location_bins(boxes_xyxy)
    # By left edge, then by top edge; what does not belong comes last and is dropped below.
    order = (
        (bins[..., 0] * LOCATION_BINS + bins[..., 1])
        .masked_fill(~targets, LOCATION_BINS**2)
        .argsort(dim=1, stable=True)
    )
    bins = bins.gather(1, order[..., None].expand(-1, -1, 4))
    belongs = targets.gather(1, order).repeat_interleave(4, dim=1)
    column = torch.ones_like(phrases[:, :1])
    tokens = torch.cat(
        [
            column * tokenizer.bos_token_id,
            phrases,
            bins.flatten(1) + first_location(tokenizer),
            column * tokenizer.eos_token_id,
        ],
        1,
    )
    said = phrase_mask.bool() & targets.any(1, keepdim=True)
    keep = torch.cat([column.bool(), said, belongs, column.bool()], dim=1)
    places = (~keep).long().argsort(dim=1, stable=True)
    return tokens.gather(1, places).masked_fill(~keep.gather(1, places), IGNORED)


def task_tokens(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask of the task's prompt for each text, (N, SEQUENCE_LENGTH) each."""
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    sequences = [f"{bos}{GROUNDING_TASK.format(prompt=text)}{eos}" for text in texts]
    return tokenize(tokenizer, sequences, device, SEQUENCE_LENGTH, add_special_tokens=False)


def encode(
    model: Florence2ForConditionalGeneration, images: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor
) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """P prompts for each image, with one pass of the vision tower.

    Args:
        model: The model.
        images: (B, 3, S, S) normalised.
        ids: (B * P, T), of `task_tokens`.
        mask: (B * P, T).

    Returns:
        The encoder's output, its attention mask (B * P, cells + 1 + T), and the image tokens (B, cells + 1, C).
    """
    visual = model.get_image_features(pixel_values=images).pooler_output
    repeated = visual.repeat_interleave(len(ids) // len(images), dim=0)
    embedded = model.get_input_embeddings()(ids)
    mask = torch.cat([mask.new_ones(repeated.shape[:2]), mask], dim=1)
    language: Any = model.model.language_model
    encoded = language.encoder(inputs_embeds=torch.cat([repeated.to(embedded.dtype), embedded], 1), attention_mask=mask)
    return encoded, mask, visual


def answer_logits(
    model: Florence2ForConditionalGeneration,
    images: torch.Tensor,
    ids: torch.Tensor,
    mask: torch.Tensor,
    given: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next-token logits (N, A, V) after each of the given answer tokens (N, A), encoder states, image tokens."""
    encoded, mask, visual = encode(model, images, ids, mask)
    answer: Any = model(encoder_outputs=encoded, attention_mask=mask, decoder_input_ids=given, use_cache=False)
    return answer.logits, encoded.last_hidden_state, visual


class Florence2Stage:
    """Trains all of Florence-2."""

    name = "florence2"
    image_size = FLORENCE2_IMAGE_SIZE

    def __init__(self, model: Florence2ForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.dense = nn.Linear(FLORENCE2_HIDDEN, 5)
        nn.init.zeros_(self.dense.weight)
        self.looks = LooksHead(FLORENCE2_HIDDEN)

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Names and parameters that this stage changes."""
        helpers = nn.ModuleDict({"dense": self.dense, "looks": self.looks})
        return [*self.model.named_parameters(), *helpers.named_parameters()]

    def losses(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Mean negative log-likelihood per sequence, in units of ten tokens, and the dense losses."""
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD)
        ids, mask = task_tokens(self.tokenizer, batch.texts, images.device)
        labels = self._labels(batch)
        given = F.pad(labels[:, :-1], (1, 0), value=self.tokenizer.eos_token_id)
        given = given.masked_fill(given == IGNORED, self.tokenizer.pad_token_id)
        logits, encoded, visual = answer_logits(self.model, images, ids, mask, given)
        loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        # The first image token is the mean over the image; the cells follow, row by row.
        looks = looks_losses(self.looks(visual[:, 1:]), batch)
        return {"loss_tokens": loss / (10 * len(labels)), **self._dense_losses(encoded, batch), **looks}

    def _labels(self, batch: Batch) -> torch.Tensor:
        texts = [text.lower() for text in batch.texts]
        device = batch.targets.device
        phrases, mask = tokenize(self.tokenizer, texts, device, PHRASE_LENGTH, add_special_tokens=False)
        return answer_labels(phrases, mask, cxcywh_to_xyxy(batch.boxes_cxcywh), batch.targets, self.tokenizer)

    def _dense_losses(self, encoded: torch.Tensor, batch: Batch) -> dict[str, torch.Tensor]:
        cells = FLORENCE2_IMAGE_TOKENS - 1
        told = self.dense(encoded[:, 1 : 1 + cells]).float()
        coverage = cell_coverage(batch, math.isqrt(cells))
        return {
            "loss_dense": presence_map_loss(told[..., 0], coverage),
            "loss_dense_box": cell_box_loss(told[..., 1:], coverage, batch.boxes_cxcywh),
        }
