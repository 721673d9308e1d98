"""Importing does nothing but import, and modules import only what stands above them."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import autodistill_sam3

PACKAGE = Path(autodistill_sam3.__file__).parent

# DESIGN's order: a module may import itself and what stands before it.
ORDER = [
    "errors", "bundled", "images", "ontology", "instances", "rle", "layout", "whole_files", "stages", "queueing",
    "thresholds", "recipe", "categories", "json_stream", "weights", "download", "devices", "grounding", "segmentation",
    "convert", "conflicts", "background", "fusion", "interpretation", "tiling", "evaluation", "labeling", "exchange",
    "preparation", "distributed", "base_models", "video", "students", "benchmark", "demo", "doctor", "cli",
]  # fmt: skip
# Training needs torch and transformers only, and nothing imports it.
ALONE = "training"
# But for the modules that measure finished checkpoints through the whole pipeline.
MEASURING = {"asking", "table", "pictures", "video_table"}
BASE_MODELS_ONLY = {"autodistill", "roboflow"}
NO_TORCH = {
    "errors", "bundled", "images", "ontology", "instances", "rle", "layout", "whole_files", "stages", "queueing",
    "thresholds", "recipe", "categories", "json_stream", "download", "conflicts", "background", "fusion",
    "interpretation", "tiling", "evaluation", "labeling", "exchange", "preparation", "distributed",
}  # fmt: skip
# The benchmark runs autodistill's own loop beside this package's.
AUTODISTILL_ALLOWED = {"base_models", "students", "benchmark"}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            yield node.module


def source_files():
    return [path for path in PACKAGE.rglob("*.py") if "_bundled" not in path.parts]


def test_every_module_has_a_place():
    assert {part_of(path) for path in source_files()} == {*ORDER, ALONE, "__init__", "__main__"}


def test_import_direction():
    for path in source_files():
        part = part_of(path)
        if part in ("__init__", "__main__"):
            continue
        for module in imported_modules(path):
            if not module.startswith("autodistill_sam3."):
                continue
            other = module.split(".")[1]
            if part == ALONE:
                assert other == ALONE or path.stem in MEASURING, f"{path} imports {module}"
                measures = other == ALONE and module.split(".")[-1] in MEASURING
                assert not measures or path.stem in MEASURING | {"__main__"}, f"{path} imports {module}"
            else:
                assert other in ORDER[: ORDER.index(part) + 1], f"{path} imports {module}"


def test_heavy_libraries_stay_where_they_belong():
    for path in source_files():
        part = part_of(path)
        top_levels = {module.split(".")[0] for module in imported_modules(path)}
        if part not in AUTODISTILL_ALLOWED:
            assert not top_levels & BASE_MODELS_ONLY, path
        if part in NO_TORCH:
            assert not top_levels & {"torch", "torchvision", "transformers"}, path


QUIET_IMPORT = """
import os, socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("network")
socket.socket.connect = refuse
socket.getaddrinfo = refuse
before = os.getcwd()
environment = dict(os.environ)
import autodistill_sam3
assert "torch" not in sys.modules and "numpy" not in sys.modules, "the root must be lazy"
assert dict(os.environ) == environment
{more}
assert os.getcwd() == before
"""
FLAGS = """
import torch
flags = lambda: (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32,
    torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
    torch.is_autocast_enabled("cuda"), torch.is_autocast_enabled("cpu"),
    torch.are_deterministic_algorithms_enabled(), torch.get_num_threads(), torch.get_float32_matmul_precision())
earlier = flags()
from autodistill_sam3 import GroundedSAM3
import autodistill_sam3.segmentation.transformers_segmenter, autodistill_sam3.grounding.florence2
assert flags() == earlier
assert not torch.cuda.is_initialized()
import logging
assert not logging.getLogger("autodistill_sam3").handlers and not logging.getLogger("autodistill_sam3").level
"""


def run_python(code, tmp_path):
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "CUDA_VISIBLE_DEVICES": "",
        "MPLCONFIGDIR": str(tmp_path),
    }
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )


def test_importing_touches_nothing(tmp_path):
    done = run_python(QUIET_IMPORT.format(more=""), tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_importing_the_models_touches_no_network_and_no_flag(tmp_path):
    done = run_python(QUIET_IMPORT.format(more=FLAGS), tmp_path)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_public_surface():
    errors = {
        "AccessError",
        "AutodistillSAM3Error",
        "CheckpointError",
        "CheckpointNotFoundError",
        "DeviceError",
        "DownloadError",
        "ImageError",
        "InputFolderError",
        "LabelingError",
        "MissingPackageError",
        "OntologyError",
        "OutOfMemoryError",
        "OutputFolderError",
        "SettingError",
        "VideoError",
    }
    classes = {"Florence2", "GroundedSAM3", "SAM3Video", "SegmentAnything3"}
    assert set(autodistill_sam3.__all__) == errors | classes | {"sam3_inference", "video_masks"}
    for name in set(autodistill_sam3.__all__) - {"sam3_inference"}:
        assert getattr(autodistill_sam3, name).__name__ == name
    assert autodistill_sam3.sam3_inference is autodistill_sam3.video_masks
