"""Splits: by name or group and seed alone, and near-duplicates."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from labelers import no_objects
from PIL import Image

from autodistill_sam3 import SettingError
from autodistill_sam3.labeling import LabelingPlan, SplitRule, label_images
from autodistill_sam3.labeling.names import SourceImage
from autodistill_sam3.labeling.report import near_duplicate_groups
from autodistill_sam3.labeling.split import NEAR_DUPLICATE_BITS, NearDuplicates, perceptual_hash

EXAMPLES = Path(__file__).parent.parent / "examples" / "images"


def image(name, group=None):
    return SourceImage(Path("any"), name, group=group)


def splits_of(rule, names):
    return [rule.split_of(image(name)) for name in names]


def test_shares_and_seed():
    names = [f"{index}.jpg" for index in range(3000)]
    rule = SplitRule(seed=3, valid_share=0.3, test_share=0.1)
    splits = splits_of(rule, names)
    for split, share in (("train", 0.6), ("valid", 0.3), ("test", 0.1)):
        assert abs(splits.count(split) / len(splits) - share) < 0.03
    assert splits == splits_of(rule, names)
    assert splits != splits_of(SplitRule(seed=4, valid_share=0.3, test_share=0.1), names)
    assert set(splits_of(SplitRule(), names)) == {"train", "valid"}
    # A share that grows takes images, and gives none back.
    wider = splits_of(SplitRule(seed=3, valid_share=0.5, test_share=0.1), names)
    assert all(now == before for before, now in zip(splits, wider, strict=True) if before != "train")


def test_groups_stay_together():
    rule = SplitRule(group_by=r"(cam\d+)_")
    names = [f"day{day}/cam{camera}_{frame}.jpg" for day in range(3) for camera in range(30) for frame in range(3)]
    by_camera = {}
    for name, split in zip(names, splits_of(rule, names), strict=True):
        by_camera.setdefault(name.split("/")[1].split("_")[0], set()).add(split)
    assert all(len(splits) == 1 for splits in by_camera.values())
    assert {"train", "valid"} == set().union(*by_camera.values())
    # Without a group in the pattern, the whole match; without a match, each for itself.
    assert splits_of(SplitRule(group_by=r"cam\d+"), names) == splits_of(rule, names)
    assert splits_of(SplitRule(group_by="nothing"), names) == splits_of(SplitRule(), names)
    # What a manifest says comes first.
    assert len({rule.split_of(image(name, "clip")) for name in names}) == 1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"valid_share": 1.0}, "valid_share"),
        ({"test_share": -0.1}, "test_share"),
        ({"valid_share": 0.5, "test_share": 0.5}, "leave some for train"),
        ({"group_by": "("}, "regular expression"),
    ],
)
def test_rules_that_are_refused(keywords, message):
    with pytest.raises(SettingError, match=message):
        SplitRule(**keywords)


def test_perceptual_hash_tells_copies_from_other_images(tmp_path):
    hashes = {}
    for path in sorted(EXAMPLES.iterdir()):
        with Image.open(path) as opened:
            original = opened.convert("RGB")
        original.resize((original.width * 2 // 3, original.height * 2 // 3)).save(tmp_path / "a.jpg", quality=50)
        with Image.open(tmp_path / "a.jpg") as copy:
            known = NearDuplicates()
            known.add(perceptual_hash(np.array(original)), "original")
            assert known.earliest(perceptual_hash(np.array(copy))) == "original"
        hashes[path.name] = perceptual_hash(np.array(original))
    assert near_duplicate_groups(hashes.items()) == []


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 5), (129, 4000)])
def test_perceptual_hash_of_any_shape(shape):
    assert len(perceptual_hash(np.zeros((*shape, 3), np.uint8))) == 16


HASHES = st.integers(0, 2**64 - 1)
FLIPS = st.lists(st.integers(0, 63), max_size=8, unique=True)


@given(st.lists(st.tuples(HASHES, st.lists(FLIPS, max_size=3)), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_near_duplicates_are_those_of_comparing_each_with_each(families):
    values = []
    for value, copies in families:
        values.append(value)
        values += [value ^ sum(1 << bit for bit in flips) for flips in copies]
    known = NearDuplicates()
    for index, value in enumerate(values):
        near = [i for i in range(index) if (values[i] ^ value).bit_count() <= NEAR_DUPLICATE_BITS]
        assert known.earliest(f"{value:016x}") == (str(near[0]) if near else None)
        known.add(f"{value:016x}", str(index))


@pytest.fixture
def copies(tmp_path):
    """Ten different images and, under names that come later, a smaller copy of each."""
    source = tmp_path / "in"
    source.mkdir()
    rng = np.random.default_rng(0)
    for index in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((160, 160))
        coarse.save(source / f"a{index}.png")
        coarse.resize((120, 120)).save(source / f"b{index}.jpg", quality=80)
    return LabelingPlan(source, tmp_path / "out", ("ball",), {}, progress=False)


def placed(output):
    return {path.stem: path.parent.parent.name for path in output.glob("*/images/*")}


def test_near_duplicates_are_reported(copies, caplog):
    label_images(copies, no_objects)
    report = json.loads((copies.output / "report.json").read_text())
    assert report["near_duplicates"] == [[f"a{index}.png", f"b{index}.jpg"] for index in range(10)]
    split = placed(copies.output)
    assert any(split[f"a{index}"] != split[f"b{index}"] for index in range(10))


def test_newcomers_join_their_neighbours_split(copies):
    grouped = replace(copies, group_near_duplicates=True)
    label_images(replace(grouped, limit=10), no_objects)
    first = placed(grouped.output)
    label_images(grouped, no_objects)
    split = placed(grouped.output)
    assert set(split.values()) == {"train", "valid"}
    assert all(split[f"a{index}"] == split[f"b{index}"] == first[f"a{index}"] for index in range(10))
    # In one go it is the same.
    label_images(replace(grouped, output=copies.output.with_name("one go")), no_objects)
    assert placed(copies.output.with_name("one go")) == split


def test_a_test_split(copies):
    plan = replace(copies, split=SplitRule(valid_share=0.3, test_share=0.3))
    label_images(plan, no_objects)
    assert set(placed(plan.output).values()) == {"train", "valid", "test"}
    assert yaml.safe_load((plan.output / "data.yaml").read_text())["test"] == "test/images"
    assert (plan.output / "test" / "_annotations.coco.json").exists()
    report = json.loads((plan.output / "report.json").read_text())
    assert sum(report["images"].values()) == 20
