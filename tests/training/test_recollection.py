"""What training remembers of clips is what the engine does."""

import hypothesis.strategies as st
import torch
from hypothesis import given

from autodistill_sam3.segmentation.memory import Memory
from autodistill_sam3.training.memory import WORTH_REMEMBERING
from autodistill_sam3.training.recollection import Recollection, Trace
from autodistill_sam3.video import objects
from autodistill_sam3.video.objects import MemoryLimits, ObjectMemory


class Tracker:
    """What a recollection asks of the model."""

    num_maskmem = 4
    mem_dim = 64
    no_memory_embedding = torch.zeros(1)

    class prompt_encoder:
        image_embedding_size = (1, 1)

    class memory_encoder:
        @staticmethod
        def position_encoding(shape, device, dtype):
            return torch.zeros(shape)


QUALITIES = st.lists(st.tuples(*[st.sampled_from([0.0, 0.01, 0.011, 0.9])] * 3), min_size=1, max_size=25)


def numbers_of(tensor, row):
    return tensor[..., row, 0].reshape(len(tensor), -1)[:, 0].int().tolist()


@given(QUALITIES)
def test_the_same_frames_are_remembered_as_by_the_engine(qualities):
    reach = 16
    mind = Recollection(Tracker, reach, WORTH_REMEMBERING)
    engine = [ObjectMemory(MemoryLimits(Tracker.num_maskmem - 1, reach, 4)) for _ in range(3)]
    for frame, quality in enumerate(qualities, 1):
        mind.keep(Trace(torch.full((2, 3, 4), float(frame)), torch.full((3, 5), float(frame))), torch.tensor(quality))
        for row, own in enumerate(engine):
            own.keep(frame, Memory(torch.full((2, 4), float(frame)), torch.full((5,), float(frame))), quality[row])
            recall = own.recall(frame + 1, reverse=False)
            for ours, theirs in ((mind.memories, recall.spatial), (mind.pointers, recall.pointers)):
                kept = [int(one.flatten()[0]) for _, one in theirs]
                assert numbers_of(ours, row) == (kept + kept[-1:] * len(ours))[: len(ours)]


def test_the_same_frames_are_worth_remembering():
    assert WORTH_REMEMBERING == objects.WORTH_REMEMBERING
