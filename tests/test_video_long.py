"""A long clip takes the memory of a short one."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from autodistill_sam3.video.writing import VideoWriter

WIDTH, HEIGHT = 1280, 720

TRACK = """
import resource, sys
from autodistill_sam3 import SAM3Video
from autodistill_sam3.ontology import PromptPairs
with SAM3Video(PromptPairs((("red square", "red square"),)), checkpoint="shapes", device="cpu") as video:
    seen = sum(len(detections) > 0 for _, detections in video.track(sys.argv[1]))
print(seen, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def write(path, length):
    """A red square that goes round and round."""
    with VideoWriter(path, 25.0, (HEIGHT, WIDTH)) as writer:
        for index in range(length):
            frame = np.full((HEIGHT, WIDTH, 3), (90, 110, 130), np.uint8)
            x = int(560 + 400 * np.cos(index / 60))
            y = int(280 + 200 * np.sin(index / 60))
            frame[y : y + 170, x : x + 170] = (215, 25, 30)
            writer.write(frame)


@pytest.mark.slow
@pytest.mark.parametrize(("short", "long"), [(300, 3000)])
def test_memory_of_a_long_clip(tmp_path, short, long):
    peaks = []
    for length in (short, long):
        path = tmp_path / f"{length}.mp4"
        write(path, length)
        done = subprocess.run([sys.executable, "-c", TRACK, path], capture_output=True, text=True, check=True)
        seen, peak = done.stdout.split()
        print(length, "frames:", seen, "with the object,", int(peak) // 2**20, "MiB")
        assert int(seen) > 0.9 * length
        peaks.append(int(peak))
    assert peaks[1] <= 1.1 * peaks[0] + 100 * 2**20
