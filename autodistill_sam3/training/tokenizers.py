"""Byte-level BPE tokenizers, trained on the prompts of the shapes world. Every byte is a token: no word is unknown."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from autodistill_sam3.training.prompts import NOUNS, word
from autodistill_sam3.training.scenes import Generator
from autodistill_sam3.training.world import COLOURS, SHAPES, Concept, is_held_out

CONTEXT_LENGTH = 32
LOCATION_BINS = 1000
GROUNDING_TASK = "Locate the phrases in the caption: {prompt}"
VOCABULARY_SIZE = 480


def _corpus(count: int = 4000) -> Iterator[str]:
    """Prompts that the tokenizers are trained on."""
    rng: Generator = np.random.default_rng(0)
    for _ in range(count):
        colour, shape = COLOURS[rng.integers(len(COLOURS))], SHAPES[rng.integers(len(SHAPES))]
        choice = rng.random()
        concept = Concept(colour, shape) if choice < 0.6 else Concept(colour) if choice < 0.8 else Concept(shape=shape)
        if not is_held_out(concept.colour, concept.shape):
            yield word(rng, concept)


def _train_bpe(special_tokens: list[str], extra: list[str]) -> Tokenizer:
    """A tokenizer whose vocabulary begins with the special tokens, in their order."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=special_tokens,
        show_progress=False,
    )
    nouns = [noun for names in NOUNS.values() for noun in names]
    # Words at the start of a text and after a space are different tokens; unknown nouns stay in pieces.
    tokenizer.train_from_iterator([*_corpus(), *nouns * 50, *COLOURS * 50, *extra], trainer)
    return tokenizer


def first_location(tokenizer: PreTrainedTokenizerFast) -> int:
    """The id of `<loc_0>`; the other 999 follow it."""
    token = tokenizer.convert_tokens_to_ids("<loc_0>")
    if not isinstance(token, int):
        raise TypeError(f"Expected one id of <loc_0>, received {token!r}.")
    return token


def sam3_tokenizer() -> PreTrainedTokenizerFast:
    """Like CLIP's: start token, text, end token; padded on the right to 32 tokens."""
    start, end, padding = "<|startoftext|>", "<|endoftext|>", "<|pad|>"
    tokenizer = _train_bpe([padding, start, end], [])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, 1), (end, 2)]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # as transformers has it
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=padding,
        unk_token=end,
        model_max_length=CONTEXT_LENGTH,
        padding_side="right",
        truncation_side="right",
        clean_up_tokenization_spaces=False,
    )


def florence2_tokenizer() -> PreTrainedTokenizerFast:
    """Like BART's, with `<image>` and 1,000 location tokens; text starts and ends where the processor says so."""
    special = ["<s>", "<pad>", "</s>", "<unk>", "<image>"]
    task = GROUNDING_TASK.format(prompt="")
    tokenizer = _train_bpe(special, [task] * 200)
    tokenizer.add_tokens([AddedToken(f"<loc_{i}>", normalized=False, special=False) for i in range(LOCATION_BINS)])
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # as transformers has it
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
        model_max_length=1024,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )
