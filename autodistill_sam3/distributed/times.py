"""Where the time of many workers went, in the terms of one run."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autodistill_sam3.labeling.times import table
from autodistill_sam3.layout import TIMES
from autodistill_sam3.whole_files import replacing

logger = logging.getLogger("autodistill_sam3")


def write_merged_times(output: Path, shards: Sequence[Path]) -> None:
    """Write `times.json` of a merged dataset from those of its shards, and log what it says.

    Args:
        output: The dataset.
        shards: Labelled folders; those without times, as after a run that found all finished, are passed over.
    """
    times = [
        json.loads(path.read_text(encoding="utf-8")) for path in (shard / TIMES for shard in shards) if path.exists()
    ]
    if not times:
        return
    content = merged_times(times)
    with replacing(output / TIMES, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")
    logger.info("%d images in %.1f s of all workers together, %.2f images/s each",
                content["images"], content["seconds"], content["images_per_second"])  # fmt: skip
    for line in table(content)[1:]:
        logger.info("%s", line)


def merged_times(times: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The `times.json` of several runs as one: seconds are added up over workers, the speed is that of one worker.

    Example:
        >>> run = {"images": 8, "seconds": 4.0, "images_per_second": 2.0, "stages": {"ViT": 3.0}, "gpu_idle_share": 0.2}
        >>> merged_times([run, run])["stages"], merged_times([run, run])["images_per_second"]
        ({'ViT': 6.0}, 2.0)
    """
    images, seconds = (sum(item[key] for item in times) for key in ("images", "seconds"))
    stages: Counter[str] = Counter()
    for item in times:
        stages.update(item["stages"])
    idle = [(item["gpu_idle_share"], item["seconds"]) for item in times if item["gpu_idle_share"] is not None]
    return {
        "images": images,
        "seconds": round(seconds, 3),
        "images_per_second": round(images / max(seconds, 1e-9), 3),
        "stages": {name: round(value, 3) for name, value in stages.items()},
        "gpu_idle_share": round(sum(a * b for a, b in idle) / sum(b for _, b in idle), 4) if idle else None,
    }
