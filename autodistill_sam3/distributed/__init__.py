"""One dataset by many workers: shards of the input, labelled anywhere, merged into what one run would have written.

Three launchers share this: processes on the devices of a machine, jobs of an array, and a Ray cluster. No torch.
"""

from autodistill_sam3.distributed.merge import merge_shards
from autodistill_sam3.distributed.processes import device_names, label_on_devices
from autodistill_sam3.distributed.ray_engine import RayWorkers, label_with_ray, ray_workers
from autodistill_sam3.distributed.shard import Labeler, label_shard, parse_shard
from autodistill_sam3.distributed.worker import MakeLabeler

__all__ = [
    "Labeler",
    "MakeLabeler",
    "RayWorkers",
    "device_names",
    "label_on_devices",
    "label_shard",
    "label_with_ray",
    "merge_shards",
    "parse_shard",
    "ray_workers",
]
