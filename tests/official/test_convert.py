"""Converted folders: whole for every transformers class, equal to the file they come from, and never half there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Sam3Model, Sam3Processor, Sam3TrackerModel, Sam3VideoModel

from autodistill_sam3 import CheckpointError, OutputFolderError, SettingError
from autodistill_sam3.cli import main
from autodistill_sam3.convert import convert
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.weights import SAM3, find_checkpoint, load_sam3

from .conftest import PROMPTS, Case
from .narrow import SCORE_THRESHOLD
from .test_files import as_sam3_1, as_trainer

BUFFERS = ("shared_embedding.positional_embedding", "shared_image_embedding.positional_embedding")


@pytest.mark.parametrize("model_class", [Sam3VideoModel, Sam3Model, Sam3TrackerModel])
def test_every_transformers_class_finds_all_its_tensors(converted_folder: Path, model_class: type) -> None:
    model, report = model_class.from_pretrained(converted_folder, local_files_only=True, output_loading_info=True)
    assert (report["missing_keys"], report["mismatched_keys"], report["error_msgs"]) == (set(), set(), [])
    # Each of the two smaller classes leaves only the other half aside.
    assert all(name.startswith(("tracker_", "detector_model.")) for name in report["unexpected_keys"])
    assert all(tensor.dtype == torch.float32 for tensor in model.state_dict().values() if tensor.is_floating_point())


def test_processor_of_the_folder(converted_folder: Path) -> None:
    processor = Sam3Processor.from_pretrained(converted_folder, local_files_only=True)
    assert processor.image_processor.size == {"height": 1008, "width": 1008}
    assert processor.tokenizer(["red circle"])["input_ids"] == [[49406, 736, 7117, 49407]]


@pytest.mark.slow
def test_folder_gives_what_the_file_gives(
    segmenter: TransformersSegmenter, converted_folder: Path, cases: tuple[Case, ...]
) -> None:
    loaded = TransformersSegmenter.load(converted_folder, device="cpu")
    for engine in (segmenter, loaded):
        assert engine._model.config.detector_config.vision_config.backbone_config.layer_norm_eps == 1e-5
    answers = []
    for engine in (segmenter, loaded):
        [result] = engine.segment_text(engine.encode([cases[0].image]), PROMPTS, [SCORE_THRESHOLD] * len(PROMPTS))
        answers.append((result.presence, result.instances.scores, result.instances.masks.to_dense()))
    for received, expected in zip(*answers, strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5)


def test_norm_epsilon_of_folders_saved_with_transformers_default(converted_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(converted_folder, tmp_path / "sam3")
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"layer_norm_eps": 1e-05', '"layer_norm_eps": 1e-06'))
    model = load_sam3(folder)
    assert model.config.detector_config.vision_config.backbone_config.layer_norm_eps == 1e-5
    norms = [m for m in model.detector_model.vision_encoder.backbone.modules() if isinstance(m, torch.nn.LayerNorm)]
    assert {norm.eps for norm in norms} == {1e-5}


@pytest.mark.parametrize(("file_format", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_16_bit_folders(converted_folder: Path, tmp_path: Path, file_format: str, dtype: torch.dtype) -> None:
    assert (
        main(["convert", "--input", str(converted_folder), "--format", file_format, "--output", str(tmp_path / "o")])
        == 0
    )
    small, large = (load_file(folder / "model.safetensors") for folder in (tmp_path / "o", converted_folder))
    assert small.keys() == large.keys()
    for name, tensor in large.items():
        keep = name.endswith(BUFFERS) or not tensor.is_floating_point()
        assert small[name].dtype == (tensor.dtype if keep else dtype)
        torch.testing.assert_close(small[name], tensor.to(small[name].dtype), rtol=0, atol=0)
    assert sum(name.endswith(BUFFERS) for name in small) == 2
    model = Sam3VideoModel.from_pretrained(tmp_path / "o", local_files_only=True)
    assert model.dtype == torch.float32
    assert load_sam3(tmp_path / "o").dtype == torch.float32


def test_weights_that_16_bits_cannot_hold(tmp_path: Path) -> None:
    folder = shutil.copytree(find_checkpoint(SAM3, "shapes"), tmp_path / "sam3")
    tensors = load_file(folder / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"finite.*float16"):
        convert(folder, "fp16", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sam3"]


def test_files_without_all_parts_need_no_conversion(official_file: Path, tmp_path: Path) -> None:
    tensors = dict(torch.load(official_file, weights_only=True))
    for index, content in enumerate((as_sam3_1(tensors), as_trainer(tensors))):
        path = tmp_path / f"{index}.pt"
        torch.save(content, path)
        with pytest.raises(CheckpointError, match="needs no conversion"):
            convert(path, "transformers", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_output_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    (tmp_path / "file").touch()
    for taken in ("out", "file"):
        with pytest.raises(OutputFolderError, match="new or empty"):
            convert("shapes", "transformers", tmp_path / taken)
    with pytest.raises(OutputFolderError, match="Choose another"):
        convert("shapes", "transformers", tmp_path / "file" / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


FULL_DISK = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from autodistill_sam3.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.exit(main(["convert", "--input", "shapes", "--format", "transformers", "--output", sys.argv[1]]))
"""


@pytest.mark.slow
def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files fails the write where a full disk would."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_others_may_read_what_is_written(tmp_path: Path) -> None:
    convert("shapes", "transformers", tmp_path / "out")
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "out").iterdir()}
    assert modes["model.safetensors"] == modes["config.json"] == 0o644
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_output_in_the_home_folder_or_through_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    convert("shapes", "bf16", "~/out")
    assert (tmp_path / "out" / "config.json").is_file()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    convert("shapes", "bf16", tmp_path / "link")
    assert (tmp_path / "empty" / "config.json").is_file()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputFolderError, match="new or empty"):
        convert("shapes", "bf16", tmp_path / "dangling")


def test_settings() -> None:
    with pytest.raises(SettingError, match="received 'gguf'"):
        convert("shapes", "gguf", "out")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="output"):
        convert("shapes", "fp16")


def test_shapes_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "sam3")
    assert main(["convert", "--input", "shapes", "--format", "bf16", "--output", out]) == 0
    assert "bf16" in capsys.readouterr().out
    flags = ["--checkpoint", out, "--prompting", "text", "--class", "red circle"]
    assert main(["predict", "examples/images/scene_00.jpg", *flags]) == 0
