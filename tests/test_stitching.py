"""Parts of a clip, and finding objects again over the frames that two of them share; numpy only."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autodistill_sam3.instances import compact_masks
from autodistill_sam3.video.clip import Frame
from autodistill_sam3.video.parts import parts_of
from autodistill_sam3.video.stitching import match_ids, merge_tracks, rename
from autodistill_sam3.video.tracks import NO_TEXT, FrameTracks

HW = (30, 40)


def frame(index, *objects):
    """Each object: id, (x, y, width, height), prompt."""
    crops = [(np.ones((h, w), bool), x, y) for _, (x, y, w, h), _ in objects]
    ids, _, prompts = zip(*objects, strict=True) if objects else ((), (), ())
    count = len(objects)
    return FrameTracks(
        index,
        np.array(ids, np.int64),
        compact_masks(crops, HW),
        np.ones(count, np.float32),
        np.array(prompts, np.int64),
        np.full(count, "text", "<U6"),
    )


def test_objects_are_found_again_by_their_masks():
    previous = [frame(4, (3, (0, 0, 10, 10), 0), (7, (20, 5, 8, 8), 0))]
    following = [frame(4, (0, (20, 5, 8, 7), 0), (1, (1, 0, 10, 10), 0), (2, (0, 20, 5, 5), 0))]
    assert match_ids(previous, following) == {0: 7, 1: 3}


def test_prompts_are_kept_apart():
    previous = [frame(0, (3, (0, 0, 10, 10), 0), (4, (0, 0, 10, 10), NO_TEXT))]
    assert match_ids(previous, [frame(0, (9, (0, 0, 10, 10), 1))]) == {}
    assert match_ids(previous, [frame(0, (9, (0, 0, 10, 10), NO_TEXT))]) == {9: 4}


def test_masks_that_agree_too_little_are_of_two_objects():
    previous = [frame(0, (3, (0, 0, 10, 10), 0))]
    assert match_ids(previous, [frame(0, (0, (0, 4, 10, 10), 0))]) == {}
    assert match_ids(previous, [frame(0, (0, (0, 3, 10, 10), 0))]) == {0: 3}
    assert match_ids(previous, [frame(1, (0, (0, 0, 10, 10), 0))]) == {}


def test_whole_overlap_decides():
    """Two objects cross: in the frame where they meet, either could be either."""
    left, right, middle = (0, 0, 8, 8), (20, 0, 8, 8), (10, 0, 8, 8)
    previous = [frame(0, (1, left, 0), (2, right, 0)), frame(1, (1, middle, 0), (2, middle, 0))]
    following = [frame(0, (5, right, 0), (6, left, 0)), frame(1, (5, middle, 0), (6, middle, 0))]
    assert match_ids(previous, following) == {5: 2, 6: 1}


def test_object_hidden_in_most_of_the_overlap():
    """It is judged by the frames that show it."""
    previous = [frame(index) for index in range(15)] + [frame(15, (1, (0, 0, 8, 8), 0))]
    following = [frame(index, (0, (20, 20, 5, 5), 0)) for index in range(15)] + [frame(15, (8, (0, 0, 8, 9), 0))]
    assert match_ids(previous, following) == {8: 1}


def test_renaming_and_merging():
    first = rename(frame(3, (0, (0, 0, 8, 8), 0)), {0: 11})
    second = rename(frame(3, (0, (5, 5, 8, 8), 1), (1, (9, 9, 2, 2), 1)), {0: 12, 1: 4})
    merged = merge_tracks([first, frame(3), second])
    assert merged.frame_index == 3
    assert merged.object_ids.tolist() == [11, 12, 4]
    assert merged.prompt_index.tolist() == [0, 1, 1]
    assert merged.masks.area.tolist() == [64, 64, 4]
    assert len(merge_tracks([frame(3)])) == 0


@given(st.integers(0, 30), st.integers(2, 8), st.data())
def test_parts_show_each_frame_once(count, length, data):
    overlap = data.draw(st.integers(1, length - 1))
    indices = sorted(data.draw(st.sets(st.integers(0, 99), min_size=count, max_size=count)))
    frames = (Frame(index, np.full((2, 3, 3), index, np.uint8)) for index in indices)
    parts = list(parts_of(frames, length, overlap))
    assert [index for part in parts for index in part.indices[part.shared :]] == indices
    for before, after in itertools.pairwise(parts):
        assert len(before) == length
        assert after.shared == overlap
        assert after.indices[:overlap] == before.indices[-overlap:]
    for part in parts:
        assert part.shared < len(part) <= length
        assert [image.getpixel((0, 0)) for image in part.images] == [(index,) * 3 for index in part.indices]


BOXES = st.tuples(st.integers(0, 30), st.integers(0, 20), st.integers(1, 10), st.integers(1, 10))


@st.composite
def clips(draw):
    """Frames with objects that each have one prompt."""
    prompts = draw(st.lists(st.integers(-1, 1), max_size=4))
    frames = []
    for index in range(draw(st.integers(1, 3))):
        shown = [number for number in range(len(prompts)) if draw(st.booleans())]
        frames.append(frame(index, *((number, draw(BOXES), prompts[number]) for number in shown)))
    return frames


def summed_iou(previous, following):
    """By dense masks, one pair after the other."""
    found = {}
    for before, after in itertools.product(previous, following):
        if before.frame_index != after.frame_index:
            continue
        for i, j in itertools.product(range(len(after)), range(len(before))):
            if after.prompt_index[i] == before.prompt_index[j]:
                one, other = np.asarray(after.masks[i]), np.asarray(before.masks[j])
                key = int(after.object_ids[i]), int(before.object_ids[j])
                iou = (one & other).sum() / (one | other).sum()
                total, count = found.get(key, (0.0, 0))
                found[key] = (total + iou, count + 1)
    # At the limit itself, the last bit of the sum decides.
    assume(all(abs(total - 0.5 * count) > 1e-6 or count == 1 for total, count in found.values()))
    return {key: total for key, (total, count) in found.items() if total >= 0.5 * count and total > 0}


@settings(deadline=None, max_examples=60)
@given(clips(), clips())
def test_best_pairing_of_all(previous, following):
    worth = summed_iou(previous, following)
    found = match_ids(previous, following)
    assert len(set(found.values())) == len(found)
    assert set(found.items()) <= set(worth)
    best = 0.0
    old = sorted({before for _, before in worth})
    new = sorted({after for after, _ in worth})
    for chosen in itertools.product([None, *old], repeat=len(new)):
        kept = [item for item in chosen if item is not None]
        if len(set(kept)) == len(kept):
            best = max(best, sum(worth.get(pair, 0.0) for pair in zip(new, chosen, strict=True)))
    assert sum(worth[pair] for pair in found.items()) >= best - 1e-6


@settings(deadline=None, max_examples=40)
@given(clips(), st.permutations(range(4)))
def test_run_that_says_the_same_under_other_ids(frames, names):
    """Masks of different objects may coincide: which of them is which cannot be known then, and does not matter."""
    new_names = {number: 100 + names[number] for number in range(4)}
    found = match_ids(frames, [rename(tracks, new_names) for tracks in frames])
    assert set(found) == {new_names[int(number)] for tracks in frames for number in tracks.object_ids}
    for tracks in frames:
        again = {found[new_names[int(number)]] for number in tracks.object_ids}
        assert again <= {int(number) for other in frames for number in other.object_ids}
