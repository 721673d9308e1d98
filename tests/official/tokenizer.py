"""CLIP's BPE merges, as the official package reads them -> tokenizer files for transformers."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTokenizer

_VOCABULARY_SIZE = 49408
_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
_END_OF_WORD = "</w>"


def write_tokenizer(bpe_path: Path, folder: Path) -> None:
    """Write the tokenizer files of `bpe_simple_vocab_16e6.txt.gz` into a folder."""
    vocabulary, merges = read_bpe(bpe_path)
    build: Any = CLIPTokenizer  # annotated for file names only
    build(vocab=vocabulary, merges=merges).save_pretrained(folder)


def read_bpe(bpe_path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the merges in order of priority.

    The ids are in the order: the bytes, the bytes at the end of a word, what each merge makes, the special tokens.
    """
    # ByteLevel knows the 256 characters that stand for bytes; CLIP numbers them by code point.
    letters = sorted(ByteLevel.alphabet())
    count = _VOCABULARY_SIZE - 2 * len(letters) - len(_SPECIAL_TOKENS)
    # The first line is a header, and the file has more merges than the model was trained with.
    lines = gzip.decompress(bpe_path.read_bytes()).decode("utf-8").split("\n")[1 : 1 + count]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    tokens = [
        *letters,
        *(letter + _END_OF_WORD for letter in letters),
        *(first + second for first, second in merges),
        *_SPECIAL_TOKENS,
    ]
    return {token: index for index, token in enumerate(tokens)}, merges
