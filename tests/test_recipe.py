"""What a recipe takes, and what it says of what it does not take."""

from __future__ import annotations

import json

import pytest

from autodistill_sam3 import SettingError
from autodistill_sam3.recipe import Recipe


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"items": "crop"}, "items to be one of images, crops, cutouts, received 'crop'"),
        ({"items": ["crops"]}, "items to be one of"),
        ({"fit": None}, "fit to be one of letterbox, stretch, within"),
        ({"margin": -0.1}, "margin to be a number, at least 0 and at most 10, received -0.1"),
        ({"margin": float("nan")}, "received nan"),
        ({"margin": "0.1"}, "received '0.1'"),
        ({"margin": True}, "received True"),
        ({"ground": "#80808"}, "'alpha' or a colour such as '#808080', received '#80808'"),
        ({"ground": 7}, "received 7"),
        ({"size": 0}, "size to be a whole number, at least 1 and at most 20000, received 0"),
        ({"size": 10**6}, "received 1000000"),
        ({"size": 3.0}, "received 3.0"),
        ({"min_side": True}, "received True"),
        ({"min_sharpness": float("inf")}, "min_sharpness to be a number, at least 0, received inf"),
        ({"drop_duplicates": 1}, "true or false, received 1"),
        ({"max_per_class": 0}, "max_per_class to be a whole number, at least 1, received 0"),
        ({"seed": "a"}, "seed to be a whole number, received 'a'"),
    ],
)
def test_what_is_wrong_is_said(values, said):
    with pytest.raises(SettingError) as raised:
        Recipe.from_mapping(values)
    assert said in str(raised.value)


def test_equal_recipes_are_equal_settings():
    first, second = Recipe(margin=1, ground="#ABCDEF"), Recipe(margin=1.0, ground="#abcdef")
    assert json.dumps(first.as_json()) == json.dumps(second.as_json())
    assert Recipe.from_mapping(first.as_json()).colour == (0xAB, 0xCD, 0xEF)
    assert Recipe().colour is None


@pytest.mark.parametrize(
    "values",
    [
        {"items": "crops"}, {"size": 9}, {"min_side": 9}, {"min_sharpness": 0}, {"drop_duplicates": True},
        {"max_per_class": 3},
    ],
)  # fmt: skip
def test_each_step_is_one(values):
    Recipe(**values).check_has_steps()


def test_no_step_is_none():
    with pytest.raises(SettingError, match="at least one step"):
        Recipe(margin=0.5, ground="#000000", fit="stretch", seed=3).check_has_steps()
