"""However tracking ends, the clip is closed, and memory is what it was before."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import clips
import pytest
import torch

from autodistill_sam3 import SAM3Video
from autodistill_sam3.ontology import PromptPairs

FRAMES = 2
OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture(scope="module")
def video():
    with SAM3Video(PromptPairs((("red circle", "ball"),)), checkpoint="shapes", device="cpu") as model:
        # What is made once, such as positions of patches.
        list(model.track(clips.bgr_frames(1)))
        yield model


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return clips.write_mp4(tmp_path_factory.mktemp("clips") / "clip.mp4", FRAMES)


def is_open(path):
    if not OPEN_FILES.exists():
        pytest.skip("needs /proc")
    links = (entry for entry in OPEN_FILES.iterdir() if entry.exists())
    return any(entry.resolve() == path for entry in links)


def tensors():
    gc.collect()
    # Asked of the type, since some objects answer questions of themselves with a warning.
    return sum(issubclass(type(item), torch.Tensor) for item in gc.get_objects())


def to_the_end(results):
    assert len(list(results)) == FRAMES


def broken(error):
    def consume(results):
        for _ in results:
            raise error

    return consume


def half_way(results):
    next(results)


def never_begun(results):
    pass


def closed_unbegun(results):
    results.close()


ENDS = {
    "to the end": to_the_end,
    "an error": broken(RuntimeError("broken")),
    "Ctrl-C": broken(KeyboardInterrupt()),
    "half way": half_way,
    "never begun": never_begun,
    "closed before it began": closed_unbegun,
}


def consumed(results, consume):
    try:
        consume(results)
    except (RuntimeError, KeyboardInterrupt) as error:
        # The exception would hold the frames that it went through, and they the results.
        error.__traceback__ = None


@pytest.mark.parametrize("end", ENDS)
def test_track(video, clip, end):
    before = tensors()
    results = video.track(clip)
    assert is_open(clip)
    consumed(results, ENDS[end])
    del results
    assert not is_open(clip)
    assert tensors() == before


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS)
def test_dictionaries(video, clip, end):
    before = tensors()
    session = {"session_id": video.handle_request({"type": "start_session", "resource_path": str(clip)})["session_id"]}
    video.handle_request({"type": "add_prompt", "frame_index": 0, "text": "red circle", **session})
    assert is_open(clip)
    results = video.handle_stream_request({"type": "propagate_in_video", **session})
    consumed(results, ENDS[end])
    del results
    # The session goes on until it is closed.
    again = video.handle_stream_request({"type": "propagate_in_video", "max_frame_num_to_track": 0, **session})
    assert [answer["frame_index"] for answer in again] == [0]
    assert is_open(clip)
    video.handle_request({"type": "close_session", **session})
    del again
    assert not is_open(clip)
    assert tensors() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupted_while_a_frame_is_made(video, error):
    """As Ctrl-C comes: somewhere inside."""
    closed = []

    def stream():
        try:
            yield from clips.bgr_frames(2)
            raise error("broken")
        finally:
            closed.append(True)

    before = tensors()
    with pytest.raises(error) as caught:
        list(video.track(stream()))
    assert closed == [True]
    caught.value.__traceback__ = None
    del caught
    assert tensors() == before


def test_closing_the_model_closes_all_clips(clip):
    model = SAM3Video(checkpoint="shapes", device="cpu")
    model.handle_request({"type": "start_session", "resource_path": clip})
    model.handle_request({"type": "start_session", "resource_path": clip})
    session = model.open(clip)
    results = session.track()
    next(results)
    model.close()
    assert not is_open(clip)
    assert list(results) == []
    model.close()


def test_a_model_that_is_dropped_leaves_nothing():
    """Weights are not kept by cycles that only the garbage collector finds."""
    model = SAM3Video(checkpoint="shapes", device="cpu")
    list(model.track(clips.bgr_frames(1)))
    model.handle_request({"type": "start_session", "resource_path": clips.bgr_frames(1)})
    gone = weakref.ref(model)
    gc.disable()
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()
