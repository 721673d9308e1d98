"""Which token follows, by what a checkpoint's generation_config.json says about greedy answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from autodistill_sam3.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import GenerationConfig

GENERATION_CONFIG = "generation_config.json"

# Settings that change greedy answers and are not applied here; each is off where it is empty, 0 or false.
_NOT_APPLIED = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "dola_layers",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "max_time",
    "min_length",
    "min_new_tokens",
    "penalty_alpha",
    "remove_invalid_values",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
)
# These are off at 1 as well.
_FACTORS_NOT_APPLIED = ("encoder_repetition_penalty", "guidance_scale", "repetition_penalty")


@dataclass(frozen=True)
class TokenRules:
    """What decides a greedy answer beside the logits.

    Attributes:
        start: The token that every answer follows.
        pad: What follows the end of an answer.
        ends: Each of them ends an answer.
        first: What every answer begins with, whatever the logits are.
        last: What stands at the last place that there is, whatever the logits are.
        ngram: No sequence of so many tokens occurs twice; 0 allows all.
    """

    start: int
    pad: int
    ends: tuple[int, ...]
    first: int | None
    last: int | None
    ngram: int

    @classmethod
    def of(cls, settings: GenerationConfig) -> TokenRules:
        """The rules of a checkpoint.

        Raises:
            CheckpointError: A setting would change the answers and is not applied here, or there is no start.
        """
        _check_applied(settings)
        start = settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id
        if not isinstance(start, int):
            raise CheckpointError(
                f"Expected a number as decoder_start_token_id in {GENERATION_CONFIG}, received {start!r}. Download "
                "the file again."
            )
        ends = _ids(settings.eos_token_id)
        pad = settings.pad_token_id
        if pad is None:
            pad = ends[0] if ends else start
        last = _ids(settings.forced_eos_token_id)
        return cls(
            start=start,
            pad=int(pad),
            ends=ends,
            first=settings.forced_bos_token_id,
            last=min(last) if last else None,
            ngram=int(settings.no_repeat_ngram_size or 0),
        )

    def choose(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        position: torch.Tensor,
        last: torch.Tensor,
        ended: torch.Tensor,
    ) -> torch.Tensor:
        """The next token of each sequence, (N,) ``int64``; nothing waits for a GPU.

        Args:
            logits: (N, V) ``float32``.
            tokens: (N, T) ``int64`` from the start on; what is behind `position` is not looked at.
            position: (1,) ``int64``, where the newest token is; the start is at 0.
            last: (1,) ``int64``, where it is when there is room for one more.
            ended: (N,) ``bool``.
        """
        scores = without_repeats(logits, tokens, position, self.ngram) if self.ngram else logits
        chosen = scores.argmax(dim=-1)
        if self.first is not None:
            chosen = chosen.masked_fill(position == 0, self.first)
        if self.last is not None:
            chosen = chosen.masked_fill(position == last, self.last)
        return chosen.masked_fill(ended, self.pad)


def without_repeats(scores: torch.Tensor, tokens: torch.Tensor, position: torch.Tensor, size: int) -> torch.Tensor:
    """The scores, -inf for a token with which the newest ones would be an n-gram that is there already.

    Args:
        scores: (N, V) ``float32``.
        tokens: (N, T) ``int64``; what is behind `position` is not looked at.
        position: (1,) ``int64``, where the newest token is.
        size: Of the n-grams.

    Example:
        >>> tokens = torch.tensor([[0, 1, 2, 0, 1, 3]])
        >>> without_repeats(torch.zeros(1, 4), tokens, torch.tensor([4]), 3).tolist()
        [[0.0, 0.0, -inf, 0.0]]
    """
    if tokens.shape[1] < size:
        return scores
    ngrams = tokens.unfold(1, size, 1)
    newest = position + torch.arange(2 - size, 1, device=tokens.device)
    beginning = tokens.index_select(1, newest.clamp(min=0))
    is_there = torch.arange(size - 1, tokens.shape[1], device=tokens.device) <= position
    is_banned = (ngrams[..., :-1] == beginning[:, None]).all(dim=-1) & is_there
    # A minimum, since a token that ends several n-grams is banned by any of them.
    limits = torch.full_like(is_banned, torch.inf, dtype=scores.dtype).masked_fill(is_banned, -torch.inf)
    return scores.scatter_reduce(1, ngrams[..., -1], limits, reduce="amin")


def _check_applied(settings: GenerationConfig) -> None:
    for name in (*_NOT_APPLIED, *_FACTORS_NOT_APPLIED):
        value: Any = getattr(settings, name, None)
        if value and not (name in _FACTORS_NOT_APPLIED and value == 1):
            raise CheckpointError(
                f"Expected a {GENERATION_CONFIG} without {name}, received {value!r}, which is not applied here. "
                f"Remove {name} from the file, or use another checkpoint."
            )


def _ids(setting: int | list[int] | None) -> tuple[int, ...]:
    if setting is None:
        return ()
    return (setting,) if isinstance(setting, int) else tuple(setting)
