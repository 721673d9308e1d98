"""Greedy answers of a BART decoder, such as Florence-2's, in steps that a GPU can replay.

Of transformers, the modules compute: projections, norms and embeddings. What is around them is here, so that a step
reads and writes tensors that stay where they are and asks the GPU for nothing: where it stands is a tensor too.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from autodistill_sam3.devices import autocast, finished
from autodistill_sam3.grounding.graphs import StepGraphs
from autodistill_sam3.grounding.token_rules import TokenRules

# A step attends over 64 places, from the 65th token on over 128, and so on, most of them empty on average: fewer sizes
# would read more, more sizes would be more graphs.
FIRST_PLACES = 64
# In the encoder's output, so that prompts of almost the same length share a graph; attention wants multiples of 8.
LENGTH_STEP = 16
# After so many steps a GPU is asked whether all answers have ended. It waits then; what is decoded in vain is cheaper.
STEPS_PER_CHECK = 8
# Numbers of sequences, of which there are eight if not all prompts are asked of all images, each with answers of up to
# two lengths.
GRAPHS_KEPT = 16


@dataclass(frozen=True)
class _Size:
    """Of a batch, or of the largest that there is room for.

    Attributes:
        sequences: N.
        encoded: L, places of the encoder's output, padded.
        places: T, places of the answers that are attended over.
    """

    sequences: int
    encoded: int
    places: int

    def fits(self, room: _Size) -> bool:
        return self == self.joined(room, min)

    def joined(self, other: _Size, by: Any) -> _Size:
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return _Size(*(by(one, two) for one, two in pairs))


class _Layer:
    """A decoder layer with its keys and values, each (N, heads, places, channels of a head)."""

    def __init__(self, layer: Any, room: _Size, device: torch.device) -> None:
        self._layer = layer
        attention = layer.self_attn
        head = (attention.num_heads, attention.embed_dim // attention.num_heads)

        def empty(places: int) -> torch.Tensor:
            shape = (room.sequences, head[0], places, head[1])
            return torch.empty(shape, dtype=attention.k_proj.weight.dtype, device=device)

        self._own = empty(room.places), empty(room.places)
        self._seen = empty(room.encoded), empty(room.encoded)

    def begin(self, encoded: torch.Tensor) -> None:
        """Keys and values of the encoder's output (N, L, C), and no own ones.

        Where nothing is, there are zeros: attention gives it no weight, but no weight of a NaN is a NaN.
        """
        attention = self._layer.encoder_attn
        sequences, length = encoded.shape[:2]
        for kept, project in zip(self._seen, (attention.k_proj, attention.v_proj), strict=True):
            kept[:sequences, :, :length] = _heads(project(encoded), attention)
            kept[:sequences, :, length:] = 0
        for kept in self._own:
            kept[:sequences] = 0

    def __call__(
        self, hidden: torch.Tensor, size: _Size, position: torch.Tensor, masks: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Hidden states (N, 1, C) -> (N, 1, C), with a new place in the layer's own keys and values."""
        layer, attention = self._layer, self._layer.self_attn
        own = [kept[: size.sequences, :, : size.places] for kept in self._own]
        for kept, project in zip(own, (attention.k_proj, attention.v_proj), strict=True):
            kept[:, :, position] = _heads(project(hidden), attention).to(kept.dtype)
        hidden = layer.self_attn_layer_norm(hidden + _attend(attention, hidden, own, masks[0]))
        seen = [kept[: size.sequences, :, : size.encoded] for kept in self._seen]
        hidden = layer.encoder_attn_layer_norm(hidden + _attend(layer.encoder_attn, hidden, seen, masks[1]))
        normed: torch.Tensor = layer.final_layer_norm(hidden + layer.fc2(layer.activation_fn(layer.fc1(hidden))))
        return normed


class _Buffers:
    """All that a step reads and writes, for batches up to a size.

    Attributes:
        tokens: (N, T + 1) ``int64``, first the start.
        log_probabilities: (N, T) ``float32``, of the tokens behind the start.
        ended: (N,) ``bool``.
        position: (1,) ``int64``, where in `tokens` the newest is.
        last: (1,) ``int64``, where it is before the last step.
        encoded_mask: (N, 1, 1, L), 0 where the encoder's output is and -inf where it is not.
    """

    def __init__(self, decoder: Any, room: _Size, device: torch.device) -> None:
        self.room = room
        self.layers = [_Layer(layer, room, device) for layer in decoder.layers]
        self.tokens = torch.empty((room.sequences, room.places + 1), dtype=torch.long, device=device)
        self.log_probabilities = torch.empty((room.sequences, room.places), device=device)
        self.ended = torch.empty(room.sequences, dtype=torch.bool, device=device)
        self.position = torch.empty(1, dtype=torch.long, device=device)
        self.last = torch.empty(1, dtype=torch.long, device=device)
        dtype = decoder.layers[0].self_attn.k_proj.weight.dtype
        self.encoded_mask = torch.empty((room.sequences, 1, 1, room.encoded), dtype=dtype, device=device)

    def begin(
        self, encoded: torch.Tensor, attention_mask: torch.Tensor, rules: TokenRules, max_new_tokens: int
    ) -> None:
        """Before the first step; see :meth:`GreedyDecoder.decode`."""
        for layer in self.layers:
            layer.begin(encoded)
        sequences, length = attention_mask.shape
        self.encoded_mask.fill_(-torch.inf)
        self.encoded_mask[:sequences, 0, 0, :length].masked_fill_(attention_mask.bool(), 0)
        self.tokens.fill_(rules.pad)
        self.tokens[:, 0] = rules.start
        self.ended.fill_(False)
        self.position.fill_(0)
        self.last.fill_(max_new_tokens - 1)


class GreedyDecoder:
    """Decodes as transformers' `generate` does with one beam and without sampling, a few hundred kernels at a time.

    What a step works on stays on the device, as large as the largest batch so far needed it: 2.7 GB for 64 sequences
    of Florence-2-large in bf16, most of it keys and values.

    Args:
        model: A `Florence2ForConditionalGeneration`, on its device. Its `lm_head` gives ``float32``.
        rules: What decides beside the logits.
        device: Where it is.
        dtype: To autocast to; None for ``float32``.
    """

    def __init__(self, model: Any, rules: TokenRules, device: torch.device, dtype: torch.dtype | None) -> None:
        self._decoder = model.model.language_model.decoder
        self._head = model.lm_head
        self._rules = rules
        self._device = device
        self._dtype = dtype
        self._graphs = StepGraphs(device, GRAPHS_KEPT)
        self._buffers: _Buffers | None = None
        self._lock = threading.Lock()

    @torch.inference_mode()
    def decode(
        self, encoded: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
        """Answers to a batch.

        Args:
            encoded: (N, L, C), the encoder's output.
            attention_mask: (N, L), 0 where it is padding.
            max_new_tokens: Longest answer.

        Returns:
            (N, T) tokens, padded behind the end of each answer, and the natural logarithms of their probabilities,
            before the rules of the checkpoint.
        """
        sequences, length = encoded.shape[:2]
        size = _Size(sequences, length + -length % LENGTH_STEP, _places(max_new_tokens))
        # In another stream nothing may still be at work on the buffers, whatever becomes of this.
        with self._lock, finished(self._device), autocast(self._device, self._dtype):
            buffers = self._room_for(size)
            buffers.begin(encoded, attention_mask, self._rules, max_new_tokens)
            steps = self._decode(buffers, size, max_new_tokens)
            tokens, logs = buffers.tokens[:sequences, 1 : 1 + steps], buffers.log_probabilities[:sequences, :steps]
            # Copies: on a CPU these are the buffers themselves, which the next batch writes to.
            return tokens.cpu().numpy().copy(), logs.cpu().numpy().copy()

    def release(self) -> None:
        """Let go of the buffers and of the graphs that work on them."""
        with self._lock:
            self._graphs.clear()
            self._buffers = None

    def _room_for(self, size: _Size) -> _Buffers:
        if self._buffers is None or not size.fits(self._buffers.room):
            room = size.joined(self._buffers.room, max) if self._buffers is not None else size
            # Before the new ones are made, as there may not be memory for both.
            self._graphs.clear()
            self._buffers = None
            self._buffers = _Buffers(self._decoder, room, self._device)
        return self._buffers

    def _decode(self, buffers: _Buffers, size: _Size, max_new_tokens: int) -> int:
        """Step until all answers have ended; the number of steps."""
        # On a CPU there is nothing to wait for.
        steps_per_check = STEPS_PER_CHECK if self._device.type == "cuda" else 1
        for step in range(1, max_new_tokens + 1):
            now = _Size(size.sequences, size.encoded, _places(step))
            state = buffers.ended, buffers.position
            self._graphs.run(now, partial(self._step, buffers, now), state)
            if step % steps_per_check == 0 and bool(buffers.ended[: size.sequences].all()):
                return step
        return max_new_tokens

    def _step(self, buffers: _Buffers, size: _Size) -> None:
        """The token behind the newest one of each sequence."""
        position, tokens = buffers.position, buffers.tokens[: size.sequences, : size.places]
        logits = self._logits(buffers, size, tokens.index_select(1, position))
        ended = buffers.ended[: size.sequences]
        chosen = self._rules.choose(logits, tokens, position, buffers.last, ended)
        log_probabilities = logits.log_softmax(dim=-1).gather(1, chosen[:, None])
        buffers.log_probabilities[: size.sequences, position] = log_probabilities
        buffers.tokens[: size.sequences, position + 1] = chosen[:, None]
        for end in self._rules.ends:
            ended |= chosen == end
        position += 1

    def _logits(self, buffers: _Buffers, size: _Size, newest: torch.Tensor) -> torch.Tensor:
        """(N, V) ``float32`` for the newest tokens (N, 1)."""
        decoder, position = self._decoder, buffers.position
        encoded_mask = buffers.encoded_mask[: size.sequences, ..., : size.encoded]
        is_later = torch.arange(size.places, device=self._device) > position
        own_mask = torch.zeros_like(is_later, dtype=encoded_mask.dtype).masked_fill(is_later, -torch.inf)
        embedded = decoder.embed_tokens(newest) + decoder.embed_positions(newest, position_ids=position)
        hidden = decoder.layernorm_embedding(embedded)
        for layer in buffers.layers:
            hidden = layer(hidden, size, position, (own_mask[None, None, None], encoded_mask))
        logits: torch.Tensor = self._head(hidden[:, -1])
        return logits.float()


def _places(tokens: int) -> int:
    """A power of two that is not below the number of tokens."""
    return max(FIRST_PLACES, 1 << (tokens - 1).bit_length())


def _heads(projected: torch.Tensor, attention: Any) -> torch.Tensor:
    """(N, L, C) -> (N, heads, L, channels of a head)."""
    return projected.view(*projected.shape[:2], attention.num_heads, -1).transpose(1, 2)


def _attend(attention: Any, hidden: torch.Tensor, kept: list[torch.Tensor], mask: torch.Tensor) -> torch.Tensor:
    """(N, 1, C) from hidden states (N, 1, C), keys and values, and a mask to add to the scores."""
    queries = _heads(attention.q_proj(hidden), attention)
    found = F.scaled_dot_product_attention(queries, kept[0], kept[1], attn_mask=mask)
    attended: torch.Tensor = attention.out_proj(found.transpose(1, 2).flatten(2))
    return attended
