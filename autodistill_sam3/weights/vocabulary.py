"""What turns a prompt into SAM 3's token ids: CLIP's vocabulary, from Meta's file or from a tokenizer's.

Meta's code reads `bpe_simple_vocab_16e6.txt.gz`, which neither its wheel nor the checkpoint carries; transformers reads
`tokenizer.json`. They hold the same merges.
"""

from __future__ import annotations

import gzip
import html
import zlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.errors import CheckpointError, CheckpointNotFoundError
from autodistill_sam3.weights.loading import load_tokenizer
from autodistill_sam3.weights.paths import expanded, is_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BPE_NAME = "bpe_simple_vocab_16e6.txt.gz"
BPE_HELP = (
    f"Copy {BPE_NAME} beside the checkpoint (it is in https://github.com/openai/CLIP under clip/, and in "
    "https://github.com/facebookresearch/sam3 under sam3/assets/), or tokenizer.json of "
    "https://huggingface.co/facebook/sam3, or run `pip install open_clip_torch`, which carries it."
)

_TOKENIZER_NAME = "tokenizer.json"
_VOCABULARY_SIZE = 49408
_SPECIAL_TOKENS = ("<|startoftext|>", "<|endoftext|>")
_END_OF_WORD = "</w>"


def find_vocabulary(checkpoint: Path, bpe_path: str | Path | None = None) -> Path:
    """The file or folder that a checkpoint's tokenizer is built from.

    Args:
        checkpoint: A folder in transformers layout, or one of Meta's files. Unless the folder holds its own tokenizer,
            it is looked for beside the file, in a clone of Meta's code beside it, and in an installed `open_clip` or
            `sam3`.
        bpe_path: `bpe_simple_vocab_16e6.txt.gz` or a `tokenizer.json`; with it nothing else is looked at.

    Raises:
        CheckpointNotFoundError: It is in none of the places.
        SettingError: `bpe_path` is empty, or no path.
    """
    if bpe_path is not None:
        path = expanded(bpe_path, "bpe_path")
        if not is_file(path):
            raise CheckpointNotFoundError(f"Expected bpe_path to be a file, received {path}. {BPE_HELP}")
        return path
    if checkpoint.is_dir() and any(is_file(checkpoint / name) for name in (_TOKENIZER_NAME, "vocab.json")):
        return checkpoint
    places = _places_of_vocabulary(checkpoint if checkpoint.is_dir() else checkpoint.parent)
    for path in places:
        if is_file(path):
            return path
    listed = "\n".join(f"  {path}" for path in places)
    raise CheckpointNotFoundError(f"No vocabulary for {checkpoint}. Looked at:\n{listed}\n{BPE_HELP}")


def find_bpe(checkpoint: Path, bpe_path: str | Path | None = None) -> Path:
    """:func:`find_vocabulary` for Meta's code, which reads only its own kind of file.

    Raises:
        CheckpointNotFoundError: There is none.
        CheckpointError: It is damaged, or `bpe_path` is of the other kind.
    """
    places = [path for path in _places_of_vocabulary(checkpoint.parent) if path.name == BPE_NAME]
    if bpe_path is not None:
        places = [find_vocabulary(checkpoint, bpe_path)]
    for path in places:
        if path.suffix == ".json":
            raise CheckpointError(f"Expected {BPE_NAME} for backend='sam3', received {path}. {BPE_HELP}")
        if is_file(path):
            load_vocabulary(path)  # Meta's code would read a damaged one without a word
            return path
    raise CheckpointNotFoundError(f"No {BPE_NAME} for backend='sam3' in {[str(path) for path in places]}. {BPE_HELP}")


def _places_of_vocabulary(folder: Path) -> list[Path]:
    places = [folder / BPE_NAME, folder / _TOKENIZER_NAME, folder / "sam3" / "sam3" / "assets" / BPE_NAME]
    for package, inside in (("open_clip", ""), ("sam3", "assets")):
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            places.append(Path(spec.origin).parent / inside / BPE_NAME)
    return places


def load_vocabulary(path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer from what :func:`find_vocabulary` found.

    Raises:
        CheckpointError: It is damaged, or not CLIP's vocabulary.
    """
    if path.is_dir():
        return load_tokenizer(path)
    from transformers import CLIPTokenizer

    build: Any = CLIPTokenizer  # annotated for file names only
    if path.suffix == ".json":
        keywords: dict[str, Any] = {"tokenizer_file": str(path)}
    else:
        keywords = dict(zip(("vocab", "merges"), read_bpe(path), strict=True))
    try:
        tokenizer: PreTrainedTokenizerBase = build(**keywords, padding_side="right")
    # The tokenizers library raises plain Exception for a damaged file.
    except Exception as error:
        raise CheckpointError(f"The vocabulary {path} cannot be used: {error}. {BPE_HELP}") from error
    return tokenizer


def read_bpe(path: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Ids by token, and the merges in order of priority, of `bpe_simple_vocab_16e6.txt.gz`.

    The ids are in the order: the bytes, the bytes at the end of a word, what each merge makes, the special tokens
    (sam3/model/tokenizer_ve.py).

    Raises:
        CheckpointError: The file is damaged or another one.
    """
    from tokenizers.pre_tokenizers import ByteLevel

    # ByteLevel knows the 256 characters that stand for bytes; CLIP numbers them by code point.
    letters = sorted(ByteLevel.alphabet())
    count = _VOCABULARY_SIZE - 2 * len(letters) - len(_SPECIAL_TOKENS)
    merges = _read_merges(path, count)
    tokens = [
        *letters,
        *(letter + _END_OF_WORD for letter in letters),
        *(first + second for first, second in merges),
        *_SPECIAL_TOKENS,
    ]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != _VOCABULARY_SIZE:
        raise CheckpointError(f"Expected {_VOCABULARY_SIZE} tokens from {path}, received {len(vocabulary)}. {BPE_HELP}")
    return vocabulary, merges


def _read_merges(path: Path, count: int) -> list[tuple[str, str]]:
    try:
        # The first line is a header, and the file has more merges than the model was trained with.
        lines = gzip.decompress(path.read_bytes()).decode("utf-8").split("\n")[1 : 1 + count]
        return [(first, second) for first, second in (line.split() for line in lines)]
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise CheckpointError(f"{path} is damaged or not CLIP's vocabulary: {error}. {BPE_HELP}") from error


def clean_prompt(prompt: str) -> str:
    """A prompt as Meta's tokenizer reads it: broken encodings, HTML entities, spaces and capitals evened out.

    The tokenizers of transformers do only the last two (`basic_clean` in sam3/model/tokenizer_ve.py). With this before
    them, token ids are Meta's for every character but U+0345 and the code points that Unicode has not assigned. What
    also differs are prompts that spell out special tokens: Meta reads `<start_of_text>` as one, and CLIP's tokenizer
    splits punctuation that touches `<|endoftext|>`.

    Example:
        >>> clean_prompt("  Tom &amp;amp; Jerry CAFÃ‰ ")
        'tom & jerry café'
    """
    import ftfy

    return " ".join(html.unescape(html.unescape(ftfy.fix_text(prompt))).split()).lower()
