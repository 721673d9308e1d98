"""Where checkpoints are found, and that a damaged one is an error."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY
from safetensors.torch import load_file, save_file
from transformers import Sam3VideoModel

from autodistill_sam3 import CheckpointError, CheckpointNotFoundError, SettingError
from autodistill_sam3.weights import (
    FLORENCE2,
    SAM3,
    find_checkpoint,
    find_official_code,
    find_vocabulary,
    load_model,
    load_sam3,
    load_tokenizer,
    places,
)

SHAPES = REPOSITORY / "models" / "shapes"


def fake_checkpoint(folder, kind):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind.model_type}))
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """No checkpoint anywhere: a current folder, a home and a hub cache of its own, and no checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv(places.MODELS_VARIABLE, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(places, "checkout_models", lambda: tmp_path / "checkout" / "models")
    return tmp_path


@pytest.mark.parametrize("kind", [SAM3, FLORENCE2])
def test_order_of_places(empty_machine, monkeypatch, kind):
    commit = "0" * 40
    repository = empty_machine / "hub" / f"models--{kind.hub_id.replace('/', '--')}"
    hub = fake_checkpoint(repository / "snapshots" / commit, kind)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setenv(places.MODELS_VARIABLE, str(empty_machine / "variable"))
    folders = [
        hub,
        empty_machine / "home" / ".cache" / "autodistill" / kind.cache_folder,
        empty_machine / "checkout" / "models" / kind.folder,
        empty_machine / "models" / kind.folder,
        empty_machine / "variable" / kind.folder,
    ]
    assert find_checkpoint(kind) == hub
    for folder in folders[1:]:
        fake_checkpoint(folder, kind)
        assert find_checkpoint(kind) == folder
    own = fake_checkpoint(empty_machine / "own", kind)
    assert find_checkpoint(kind, own) == own
    assert find_checkpoint(kind, str(empty_machine / "variable")) == empty_machine / "variable" / kind.folder


@pytest.mark.parametrize("kind", [SAM3, FLORENCE2])
def test_nothing_found_names_every_place(empty_machine, monkeypatch, kind):
    monkeypatch.setenv(places.MODELS_VARIABLE, str(empty_machine / "variable"))
    with pytest.raises(CheckpointNotFoundError) as caught:
        find_checkpoint(kind)
    message = str(caught.value)
    for place in (
        "variable",
        "checkout",
        str(empty_machine / "models"),
        ".cache/autodistill",
        "hub",
        "autodistill-sam3 download",
    ):
        assert place in message
    assert isinstance(caught.value, FileNotFoundError)


def test_shapes_are_never_a_fallback(empty_machine):
    assert find_checkpoint(SAM3, "shapes").parent.name == "shapes"
    with pytest.raises(CheckpointNotFoundError):
        find_checkpoint(SAM3)


def test_unknown_argument_names_the_places(empty_machine):
    with pytest.raises(CheckpointNotFoundError, match="the argument: sam9/sam3"):
        find_checkpoint(SAM3, "sam9")


def test_file_of_another_kind(tmp_path):
    (tmp_path / "sam3.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"sam3\.pt, sam3\.1_multiplex\.pt, or a folder"):
        find_checkpoint(SAM3, tmp_path / "sam3.onnx")
    with pytest.raises(CheckpointError, match="Expected a folder"):
        find_checkpoint(FLORENCE2, tmp_path / "sam3.onnx")


def test_transformers_folder_is_not_for_the_official_code(empty_machine):
    fake_checkpoint(empty_machine / "models" / "sam3", SAM3)
    assert find_checkpoint(SAM3) == empty_machine / "models" / "sam3"
    with pytest.raises(CheckpointNotFoundError, match="transformers' layout, which the official code cannot read"):
        find_checkpoint(SAM3, official=True)


def test_official_file_in_the_hub_cache(empty_machine):
    commit = "0" * 40
    repository = empty_machine / "hub" / "models--facebook--sam3"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    # What Meta's builder downloads.
    (snapshot / "config.json").write_text("{}")
    (snapshot / "sam3.pt").write_bytes(b"x")
    assert find_checkpoint(SAM3) == snapshot / "sam3.pt"
    (snapshot / "config.json").unlink()
    assert find_checkpoint(SAM3) == snapshot / "sam3.pt"


def test_clone_of_the_official_code(empty_machine):
    checkpoint = empty_machine / "own" / "sam3.pt"
    assert find_official_code(checkpoint) is None
    places = [empty_machine / "models" / "sam3" / "sam3" / "sam3", empty_machine / "own" / "sam3"]
    for package in places:
        package.mkdir(parents=True)
        (package / "model_builder.py").touch()
    assert find_official_code(checkpoint) == empty_machine / "own" / "sam3"
    assert find_official_code(empty_machine / "other") == empty_machine / "models" / "sam3" / "sam3"


def test_other_models(tmp_path):
    fake_checkpoint(tmp_path / "florence", FLORENCE2)
    with pytest.raises(CheckpointError, match="'florence2'"):
        find_checkpoint(SAM3, tmp_path / "florence")


def test_microsofts_florence_is_recognised(tmp_path):
    folder = fake_checkpoint(tmp_path / "florence2", FLORENCE2)
    config = {"model_type": "florence2", "auto_map": {"AutoConfig": "configuration_florence2.Florence2Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="florence-community"):
        find_checkpoint(FLORENCE2, tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_config(tmp_path, content):
    folder = fake_checkpoint(tmp_path / "sam3", SAM3)
    (folder / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        find_checkpoint(SAM3, tmp_path)


def test_config_without_weights(tmp_path):
    folder = fake_checkpoint(tmp_path / "sam3", SAM3)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        find_checkpoint(SAM3, tmp_path)


@pytest.fixture
def copied_shapes(tmp_path):
    return shutil.copytree(SHAPES / "sam3", tmp_path / "sam3")


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


HEAD = "detector_model.detr_decoder.box_head.layer1.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop(HEAD), "missing.*box_head"),
        *(
            (lambda tensors, name=name: tensors.update({name: torch.zeros(1)}), f"unexpected.*{name}")
            for name in ("stray", "detector_model.stray", "tracker_neck.stray", "tracker_model.mask_decoder.stray")
        ),
        (lambda tensors: tensors.update({HEAD: torch.zeros(3, 3)}), "mismatched.*box_head.*3, 3"),
    ],
)
def test_tensors_that_do_not_fit(copied_shapes, change, message):
    change_tensors(copied_shapes, change)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_model(Sam3VideoModel, copied_shapes)


def test_truncated_weights(copied_shapes):
    path = copied_shapes / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_model(Sam3VideoModel, copied_shapes)


def test_tokenizer_missing_or_damaged(copied_shapes):
    (copied_shapes / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(copied_shapes)
    (copied_shapes / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="tokenizer"):
        load_tokenizer(copied_shapes)


def test_code_in_a_checkpoint_is_never_executed(copied_shapes, tmp_path):
    """transformers would ask on the terminal, and run it if the answer is yes."""
    from autodistill_sam3.weights import load_image_processor

    (copied_shapes / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    for path in copied_shapes.glob("*.json"):
        config = json.loads(path.read_text())
        if "model_type" not in config and path.name != "tokenizer.json":
            config["auto_map"] = {"AutoImageProcessor": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}
            path.write_text(json.dumps(config))
    for load in (load_tokenizer, load_image_processor):
        with contextlib.suppress(CheckpointError):
            load(copied_shapes)
    assert not (tmp_path / "ran").exists()


def test_weights_file_names_its_folder(copied_shapes):
    assert find_checkpoint(SAM3, copied_shapes / "model.safetensors") == copied_shapes


def test_loading_is_silent_and_leaves_transformers_logging_alone(capfd):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = load_model(Sam3VideoModel, SHAPES / "sam3")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before
    assert capfd.readouterr() == ("", "")
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_folder_that_transformers_saved_itself(copied_shapes, tmp_path):
    """Its names have the tracker's prefix twice."""
    load_sam3(copied_shapes).save_pretrained(tmp_path / "saved")
    expected, received = (load_sam3(folder).state_dict() for folder in (copied_shapes, tmp_path / "saved"))
    assert all(torch.equal(received[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"model.safetensors": b"x"}, "model.safetensors without config.json"),
        ({"sam3.pt": b""}, "sam3.pt, an empty file"),
        ({"FastSAM-x.pt": b"x"}, "FastSAM-x.pt, another model"),
        ({"sam_b.pt": b"x"}, "sam_b.pt, another model"),
        ({"sam3.pt/x": b"x"}, "sam3.pt, a folder"),
    ],
)
def test_what_lies_there_is_named(empty_machine, files, message):
    for name, content in files.items():
        path = empty_machine / "models" / "sam3" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    with pytest.raises(CheckpointNotFoundError, match=f"holds {message}"):
        find_checkpoint(SAM3)


def test_links_that_lead_nowhere(empty_machine):
    folder = empty_machine / "models" / "sam3"
    folder.mkdir(parents=True)
    (folder / "sam3.pt").symlink_to(folder / "gone.pt")
    with pytest.raises(CheckpointNotFoundError, match="broken link"):
        find_checkpoint(SAM3)


def test_useless_files_do_not_hide_a_good_one(empty_machine):
    folder = empty_machine / "models" / "sam3"
    folder.mkdir(parents=True)
    (folder / "sam3.pt").touch()
    (folder / "config.json").write_text(json.dumps({"model_type": "other"}))
    (folder / "best.PT").write_bytes(b"x")
    assert find_checkpoint(SAM3) == folder / "best.PT"
    (folder / "sam3.safetensors").write_bytes(b"x")
    assert find_checkpoint(SAM3, folder / "sam3.safetensors") == folder / "sam3.safetensors"


def test_places_that_may_not_be_looked_at(empty_machine, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_file", refuse)
    monkeypatch.setattr("os.scandir", refuse)
    monkeypatch.setattr("os.listdir", refuse)
    with pytest.raises(CheckpointNotFoundError, match="not readable"):
        find_checkpoint(SAM3)


@pytest.mark.parametrize("path", ["~nosuchuser/x", "x" * 300])
def test_strange_paths_are_just_not_there(empty_machine, monkeypatch, path):
    with pytest.raises(CheckpointNotFoundError):
        find_checkpoint(SAM3, path)
    monkeypatch.setenv(places.MODELS_VARIABLE, path)
    with pytest.raises(CheckpointNotFoundError):
        find_checkpoint(SAM3)


@pytest.mark.parametrize("path", ["", " ", "nul\0byte", 3, b"sam3"])
def test_arguments_that_are_no_paths(empty_machine, path):
    with pytest.raises(SettingError, match="checkpoint"):
        find_checkpoint(SAM3, path)
    with pytest.raises(SettingError, match="bpe_path"):
        find_vocabulary(empty_machine / "sam3.pt", path)


def test_no_home(empty_machine, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(CheckpointNotFoundError):
        find_checkpoint(SAM3)


def test_shapes_may_be_given_as_a_path():
    assert find_checkpoint(SAM3, Path("shapes")) == find_checkpoint(SAM3, "shapes")


def test_code_in_a_cache_is_not_run(empty_machine):
    snapshot = empty_machine / "hub" / "models--facebook--sam3" / "snapshots" / "0" / "sam3"
    cached = empty_machine / "home" / ".cache" / "autodistill" / SAM3.cache_folder / "sam3"
    for clone in (snapshot, cached):
        clone.mkdir(parents=True)
        (clone / "model_builder.py").touch()
    assert find_official_code(snapshot.parent / "sam3.pt") is None
    assert find_official_code(empty_machine / "own" / "sam3.pt") is None
