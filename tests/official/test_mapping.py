"""The official weights, names and tokens in transformers' terms."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autodistill_sam3.weights import clean_prompt
from autodistill_sam3.weights.official import to_transformers
from autodistill_sam3.weights.official.names import DROPPED, translate

from .narrow import NarrowOfficial

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def test_every_official_tensor_is_used_or_listed_as_dropped(official: NarrowOfficial) -> None:
    checkpoint = official.checkpoint()
    dropped = {name for name in checkpoint if DROPPED.fullmatch(name)}
    assert dropped == {
        *(f"detector.backbone.vision_backbone.trunk.blocks.{layer}.attn.freqs_cis" for layer in range(2)),
        *(
            f"detector.geometry_encoder.points_{projection}_project.{kind}"
            for projection in ("direct", "pool", "pos_enc")
            for kind in ("weight", "bias")
        ),
    }
    # Every number of the tensors that are not dropped is in the result: once, but for the matrix that is kept twice
    # and the position of a class token that the official model itself drops.
    matrix = checkpoint["tracker.sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    class_token = checkpoint["detector.backbone.vision_backbone.trunk.pos_embed"][:, :1]
    used = sum(tensor.numel() for name, tensor in checkpoint.items() if name not in dropped)
    converted = sum(tensor.numel() for tensor in to_transformers(checkpoint).values())
    assert converted == used + matrix.numel() - class_token.numel()


def test_every_tensor_of_the_target_is_filled_in_its_shape(official: NarrowOfficial, converted_folder: Path) -> None:
    from transformers import Sam3VideoConfig, Sam3VideoModel

    with torch.device("meta"):
        model = Sam3VideoModel(Sam3VideoConfig.from_pretrained(converted_folder))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in to_transformers(official.checkpoint()).items()} == expected


def test_no_tensor_is_left_at_an_initial_value(official: NarrowOfficial) -> None:
    """A term that is multiplied by 0 or 1 could be left out unnoticed."""
    constant = [
        name
        for name, tensor in official.checkpoint().items()
        if tensor.numel() > 1 and tensor.flatten()[0] == tensor.flatten()[-1]
    ]
    zero = [name for name, tensor in official.checkpoint().items() if not tensor.any()]
    assert (constant, zero) == ([], [])


def test_unknown_tensors_are_refused(official: NarrowOfficial) -> None:
    with pytest.raises(KeyError, match=r"detector\.new_head\.weight"):
        translate("detector.new_head.weight")
    checkpoint = official.checkpoint()
    [name] = [name for name in checkpoint if name.endswith(".encode_norm.bias")]
    with pytest.raises(KeyError, match="Two tensors"):
        to_transformers({**checkpoint, name.replace("encode_norm", "output_layer_norm"): checkpoint[name]})


def assert_official_ids(official: NarrowOfficial, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    received = tokenizer([clean_prompt(prompt)], max_length=32, truncation=True)["input_ids"]
    assert official.token_ids([prompt]) == received


@pytest.mark.parametrize(
    "prompt",
    [
        "red circle",
        "  A  Milk\tBottle ",
        "visual",
        "person's hat, rock'n'roll",
        "café crème, über-straße",
        "we're 42nd (left) & <right> at 100 km/h!!",
        "日本の猫 🙂",
        "Красная МАШИНА, ŞAPKA, İstanbul, ΣΊΣΥΦΟΣ",
        "Tom &amp; Jerry &amp;lt;3 &eacute;",
        "“curly” ‘quotes’, ﬁne ligatures, ｆｕｌｌ ｗｉｄｔｈ, schÃ¶n",
        "e\u0301 and \u00e9, a\u200bb, \u00a0x",
        "👩‍👩‍👧‍👦 🇩🇪 ☕️",
        "word " * 60,
        "x" * 200,
        "",
    ],
)
def test_token_ids_are_the_official_ones(
    official: NarrowOfficial, tokenizer: PreTrainedTokenizerBase, prompt: str
) -> None:
    assert_official_ids(official, tokenizer, prompt)


# All of Unicode was compared, alone and beside letters, digits and punctuation: what differs is U+0345, a Greek accent
# that becomes a letter in lower case, and code points that mean nothing yet, which the two regex engines class apart.
@settings(max_examples=300, deadline=None)
@given(prompt=st.text(st.characters(exclude_categories=("Cn", "Cs")), max_size=40))
def test_token_ids_of_any_text(official: NarrowOfficial, tokenizer: PreTrainedTokenizerBase, prompt: str) -> None:
    cleaned = unicodedata.normalize("NFD", clean_prompt(prompt))
    assume("\u0345" not in cleaned and all(unicodedata.category(character) != "Cn" for character in cleaned))
    assert_official_ids(official, tokenizer, prompt)


def test_the_official_package_leaves_no_state_behind(official: NarrowOfficial) -> None:
    assert official is not None
    assert not torch.is_autocast_enabled("cuda")
    assert not torch.backends.cuda.matmul.allow_tf32
    assert torch.get_default_device() == torch.device("cpu")
    assert not hasattr(torch.Tensor.pin_memory, "__code__")  # torch's own, not the stand-in
