"""What `diagnose` says of good and bad machines and checkpoints, and that each bad thing comes with a cure."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple
from importlib.metadata import packages_distributions
from types import SimpleNamespace

import numpy as np
import pytest
import supervision as sv
import torch
from conftest import REPOSITORY
from official import narrow
from safetensors.torch import load_file, save_file
from transformers import Sam3VideoConfig, Sam3VideoModel

from autodistill_sam3 import GroundedSAM3, bundled
from autodistill_sam3.doctor import Finding, Report, checkpoints, diagnose, format_report, outlines, self_test
from autodistill_sam3.instances import Instances
from autodistill_sam3.segmentation import TextResult
from autodistill_sam3.weights import find_bpe, places

SHAPES = REPOSITORY / "models" / "shapes"
HEAD = "detector_model.detr_decoder.box_head.layer1.weight"
TOKEN = "hf_marker_that_must_not_be_shown"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Calls are recorded, since a report survives the exception."""
    calls = []

    def refuse(*arguments, **keywords):
        calls.append(arguments)
        raise OSError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    yield
    assert calls == []


@pytest.fixture(autouse=True)
def empty_machine(tmp_path, monkeypatch):
    """No checkpoint anywhere, no GPU, and a token whose value is known."""
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    for name in (places.MODELS_VARIABLE, "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(places, "checkout_models", lambda: tmp_path / "checkout" / "models")
    monkeypatch.setattr("autodistill_sam3.doctor.hardware._PROC_DRIVER", tmp_path / "no driver")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


PACKAGES = {}
OUTLINES = {}


@pytest.fixture(autouse=True)
def looked_up_once(monkeypatch):
    """What is the same in nearly all reports and takes most of their time: all packages, and outlines of models."""

    def packages():
        path = tuple(sys.path)
        if path not in PACKAGES:
            PACKAGES[path] = packages_distributions()
        return PACKAGES[path]

    def remembered(outline):
        def call(path):
            if path.is_file():
                return outline(path)
            # Copies have the times of what they are copies of, and what a test changes has its own.
            state = [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(path.iterdir())]
            key = outline, *state
            if key not in OUTLINES:
                OUTLINES[key] = outline(path)
            return OUTLINES[key]

        return call

    monkeypatch.setattr("importlib.metadata.packages_distributions", packages)
    monkeypatch.setattr(checkpoints, "sam3_outline", remembered(outlines.sam3_outline))
    monkeypatch.setattr(checkpoints, "florence2_outline", remembered(outlines.florence2_outline))


@pytest.fixture(autouse=True)
def one_thread():
    """Small models are faster so where other processes want the cores too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def copied_shapes(tmp_path):
    return shutil.copytree(SHAPES, tmp_path / "models")


def findings_of(report, section, title=None):
    chosen = [each for each in report.findings if each.section == section and title in (None, each.title)]
    assert chosen, format_report(report)
    return chosen


def the(report, section, title):
    [finding] = findings_of(report, section, title)
    return finding


def assert_every_trouble_has_a_cure(report):
    for finding in report.findings:
        assert finding.cure or finding.level in ("ok", "info"), finding
    text = format_report(report)
    assert text.isascii()
    assert text.count("cure: ") == sum(bool(finding.cure) for finding in report.findings)
    assert TOKEN not in text


# The report as a whole.


def test_defaults_are_those_of_labelling():
    own, theirs = (inspect.signature(each).parameters for each in (diagnose, GroundedSAM3.__init__))
    for name in set(own) - {"output", "self_test"}:
        assert own[name].default == theirs[name].default, name


def test_nothing_found(empty_machine):
    report = diagnose()
    assert not report.can_label
    assert {finding.section for finding in report.of_level("problem")} == {"SAM 3", "Florence-2"}
    assert "autodistill-sam3 download sam3" in the(report, "SAM 3", "taken").cure
    assert "--prompting text" in the(report, "Florence-2", "taken").cure
    text = format_report(report)
    for folder in ("empty/models/sam3", "checkout/models/florence2", ".cache/autodistill/florence_2", "hub/models--"):
        assert folder in text
    assert text.endswith("Labelling could not run: 2 problems, 1 warning.")
    assert_every_trouble_has_a_cure(report)
    assert [path.name for path in empty_machine.iterdir()] == ["empty"]
    assert list((empty_machine / "empty").iterdir()) == []


def test_shapes():
    report = diagnose(checkpoint="shapes")
    assert report.can_label, format_report(report)
    assert not report.of_level("warning"), format_report(report)
    assert "740" in the(report, "SAM 3", "tensors").value
    assert the(report, "SAM 3", "good for").value == "text, boxes and video"
    assert str(SHAPES / "florence2") in the(report, "Florence-2", "taken").value
    assert the(report, "Software", "torch").value == torch.__version__
    assert the(report, "Surroundings", "Hugging Face token").value == "present, not shown"
    assert "FFmpeg" in the(report, "Surroundings", "video decoding").value
    assert_every_trouble_has_a_cure(report)


def test_text_needs_no_florence2(copied_shapes):
    shutil.rmtree(copied_shapes / "florence2")
    assert not diagnose(checkpoint=copied_shapes).can_label
    report = diagnose(checkpoint=copied_shapes, prompting="text")
    assert report.can_label
    assert the(report, "Florence-2", "taken").level == "info"


def test_settings_that_do_not_exist():
    for keyword in ("backend", "prompting", "precision"):
        report = diagnose(**{keyword: "abacus"})
        assert not report.can_label
        assert keyword in the(report, "Software", "settings").cure
        assert_every_trouble_has_a_cure(report)


def test_format_is_aligned_and_keeps_paths_whole():
    path = "/a/" + "b" * 150
    long = Finding("Device", "GPU", "word " * 40, "warning", "advice " * 40)
    text = format_report(Report((long, Finding("Device", "precision", path), Finding("SAM 3", "x", "two\nlines"))))
    lines = text.splitlines()
    assert any(path in line for line in lines)
    assert all(len(line) <= 120 for line in lines if path not in line)
    starts = {line.index(word) for word, line in ((w, next(x for x in lines if w in x)) for w in ("word", "lines"))}
    assert len(starts) == 1
    assert text.count("Device") == 1
    assert text.endswith("Labelling can run: 0 problems, 1 warning.")


BROKEN_TORCH = """
from autodistill_sam3.doctor import diagnose, format_report
import sys
assert "torch" not in sys.modules
report = diagnose(checkpoint="shapes")
print(format_report(report))
assert not report.can_label
"""


def test_broken_torch_still_gives_a_report(tmp_path):
    (tmp_path / "site" / "torch").mkdir(parents=True)
    cause = "libcudart.so.13: cannot open shared object file"
    (tmp_path / "site" / "torch" / "__init__.py").write_text(f"raise OSError({cause!r})")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{REPOSITORY}"}
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_TORCH], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    assert cause in done.stdout
    assert "pytorch.org" in done.stdout
    for section in ("Installation", "Device", "SAM 3", "Florence-2", "Official code", "Surroundings"):
        assert f"\n{section}\n" in done.stdout
    assert "shapes: transformers layout, 15.7 MB" in done.stdout
    assert "present, not shown" in done.stdout
    assert TOKEN not in done.stdout


WITHOUT_AUTODISTILL = """
import sys
sys.modules["autodistill"] = None
from autodistill_sam3.doctor import diagnose
print([(f.title, f.level) for f in diagnose(checkpoint="shapes").findings if f.section == "Software"])
"""


def test_a_missing_package_is_one_problem():
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", WITHOUT_AUTODISTILL]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert [title for title, level in ast.literal_eval(done.stdout) if level == "problem"] == ["labelling code"]


# Software and installation.


def test_requirements(monkeypatch):
    lines = ["torch>=99", "abacus>=1", "opencv-python>=4; extra == 'x'"]
    monkeypatch.setattr("autodistill_sam3.doctor.software.metadata.requires", lambda name: lines)
    report = diagnose(checkpoint="shapes")
    assert the(report, "Software", "abacus").level == "problem"
    [too_old] = [each for each in findings_of(report, "Software", "torch") if each.level == "warning"]
    assert too_old.cure == "pip install 'torch>=99'"


def install_fake(site, name, *, editable=False):
    """A distribution of this name that ships the module; an editable one names none of its files."""
    info = site / f"{name.replace('-', '_')}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "RECORD").write_text(f"{info.name}/METADATA,,\n" + ("" if editable else "autodistill_sam3/__init__.py,,\n"))


def test_the_module_is_ours():
    assert the(diagnose(), "Installation", "module").level == "ok"


@pytest.mark.parametrize(("name", "editable"), [("autodistill-sam3", False), ("autodistill-sam3", True), ("x", False)])
def test_another_distribution_of_the_module(tmp_path, monkeypatch, name, editable):
    install_fake(tmp_path / "site", name, editable=editable)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    finding = the(diagnose(), "Installation", "module")
    assert finding.level == "warning"
    assert finding.cure.startswith(f"pip uninstall {name}, then")
    monkeypatch.setattr("autodistill_sam3.__all__", ["SegmentAnything3"])
    report = diagnose(checkpoint="shapes")
    assert the(report, "Installation", "module").level == "problem"
    assert not report.can_label


def test_files_that_were_replaced(tmp_path, monkeypatch):
    site = tmp_path / "site"
    install_fake(site, "autodistill-grounded-sam3")
    info = next(site.iterdir())
    digest = "sha256=47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"  # of nothing
    files = ("__init__.py", "cli.py", "gone.py")
    (info / "RECORD").write_text("".join(f"autodistill_sam3/{name},{digest},0\n" for name in files))
    (site / "autodistill_sam3").mkdir()
    (site / "autodistill_sam3" / "__init__.py").write_text("")
    (site / "autodistill_sam3" / "cli.py").write_text("another")
    monkeypatch.syspath_prepend(str(site))
    report = diagnose()
    module = the(report, "Installation", "module")
    assert module.level == "warning" and "force-reinstall" in module.cure
    assert "cli.py" in module.value and "gone.py" in module.value and "__init__" not in module.value
    place = the(report, "Installation", "place")
    assert str(site) in place.value and str(REPOSITORY / "autodistill_sam3") in place.value


def test_official_code(monkeypatch, copied_shapes):
    from importlib.util import find_spec

    report = diagnose()
    assert the(report, "Official code", "needed modules").value == "all there"
    assert "sam3" not in sys.modules or sys.modules["sam3"].__file__

    def hide(*names):
        monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in names else find_spec(name))

    hide("psutil", "triton")
    for backend, level in (("transformers", "info"), ("sam3", "problem")):
        finding = the(diagnose(backend=backend), "Official code", "needed modules")
        assert (finding.value, finding.level) == ("psutil, triton missing", level)
    hide("sam3")
    assert the(diagnose(backend="sam3"), "Official code", "sam3").level == "problem"
    clone = copied_shapes / "sam3" / "sam3"
    clone.mkdir()
    (clone / "model_builder.py").write_text("raise AssertionError('executed')")
    report = diagnose(backend="sam3", checkpoint=copied_shapes / "sam3")
    assert str(clone) not in the(report, "SAM 3", "taken").value
    assert "leave out --backend sam3" in the(report, "SAM 3", "taken").cure


# GPUs.


Memory = namedtuple("Memory", "gigabytes free capability")


@pytest.fixture
def gpus(monkeypatch):
    def simulate(*cards, architectures=("sm_75", "sm_80", "sm_90", "compute_120")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cards))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(cards))
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: list(architectures))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: cards[index_of(index)].capability)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (int(cards[index].free * 1e9), 0))
        monkeypatch.setattr(
            torch.cuda,
            "get_device_properties",
            lambda index: SimpleNamespace(name=f"card {index}", total_memory=int(cards[index].gigabytes * 1e9)),
        )

    def index_of(device):
        return device if isinstance(device, int) else (device.index or 0)

    return simulate


@pytest.mark.parametrize(
    ("gigabytes", "level", "cure"),
    [
        (8.5, "warning", "--batch-size 1 --prompting text"),
        (12.6, "warning", "--batch-size 1."),
        (15.83, "info", ""),  # what a card of 16 GB reports
        (20.0, "info", ""),
        (23.7, "ok", ""),  # a card of 24 GB
        (42.0, "ok", ""),
    ],
)
def test_gpu_memory(gpus, gigabytes, level, cure):
    gpus(Memory(gigabytes, gigabytes - 0.5, (8, 6)))
    report = diagnose()
    finding = the(report, "Device", "GPU 0")
    assert finding.level == level
    assert cure in finding.cure
    assert f"{gigabytes:.1f} GB" in finding.value and "capability 8.6" in finding.value
    assert the(report, "Device", "device").value == "cuda:0"
    assert the(report, "Device", "precision").value == "bfloat16"
    assert_every_trouble_has_a_cure(report)


def test_gpu_that_others_use(gpus):
    gpus(Memory(24, 5, (8, 6)), Memory(24, 23, (8, 6)))
    assert "another GPU" in the(diagnose(), "Device", "GPU 0").cure
    report = diagnose(device="cuda:1")
    assert [finding.level for finding in findings_of(report, "Device") if "GPU" in finding.title] == ["info", "ok"]


def test_old_gpu(gpus):
    gpus(Memory(24, 23, (7, 5)))
    assert the(diagnose(), "Device", "precision").level == "info"
    assert "--precision bf16" in the(diagnose(precision="bf16"), "Device", "precision").cure
    assert "--precision fp32" in the(diagnose(precision="fp32"), "Device", "precision").cure
    gpus(Memory(24, 23, (6, 1)))
    assert the(diagnose(), "Device", "GPU 0").level == "problem"
    gpus(Memory(24, 23, (12, 1)))
    assert the(diagnose(), "Device", "GPU 0").level == "ok"


def test_gpu_that_cannot_be_used(gpus, monkeypatch):
    gpus(Memory(24, 23, (9, 0)))

    def refuse(index):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nmore")

    monkeypatch.setattr(torch.cuda, "mem_get_info", refuse)
    finding = the(diagnose(), "Device", "GPU 0")
    assert finding.level == "problem" and finding.value.endswith("unavailable")
    assert the(diagnose(device="cpu"), "Device", "device").cure == "Leave out --device cpu."


def fake_driver(folder, version):
    tool = folder / "bin" / "nvidia-smi"
    tool.parent.mkdir(exist_ok=True)
    tool.write_text(f"#!/bin/sh\necho {version}\n")
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("driver", "cuda", "cure"),
    [
        (None, "13.0", "install its driver"),
        ("535.104.05", "13.0", "Driver 535.104.05 is too old for CUDA 13.0: install driver 580 or newer"),
        ("535.104.05", "12.8", "CUDA_VISIBLE_DEVICES is set and may hide it"),
        ("535.104.05", None, "built without CUDA"),
        ("NVIDIA-SMI has failed", "13.0", "install its driver"),
    ],
)
def test_no_gpu(empty_machine, monkeypatch, driver, cuda, cure):
    if driver is not None:
        fake_driver(empty_machine, driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "secret")
    report = diagnose()
    assert cure in the(report, "Device", "device").cure
    assert "slow" in the(report, "Device", "device").value
    assert "secret" not in format_report(report)
    report = diagnose(device="cuda:3")
    assert the(report, "Device", "device").level == "problem"
    assert cure in the(report, "Device", "device").cure


def test_driver_from_the_kernel(empty_machine):
    line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n"
    (empty_machine / "no driver").write_text(line)
    assert the(diagnose(), "Device", "NVIDIA driver").value == "570.133.20"
    assert the(diagnose(device="abacus"), "Device", "device").level == "problem"


# Checkpoints.


def change_tensors(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def change_config(**values):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def cut_off(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100])


def without_a_shard(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {HEAD: "model-1-of-2.safetensors"}}))


@pytest.mark.parametrize(
    ("change", "title", "text"),
    [
        (lambda folder: change_tensors(folder, lambda tensors: tensors.pop(HEAD)), "tensors", "1 missing"),
        (lambda folder: change_tensors(folder, lambda t: t.update(stray=torch.ones(1))), "tensors", "1 unexpected"),
        (lambda folder: change_tensors(folder, lambda t: t.update({HEAD: torch.ones(3, 3)})), "tensors", "1 mismatch"),
        (cut_off, "tensors", "damaged or cut off"),
        (without_a_shard, "tensors", "model-1-of-2"),
        (write("model.safetensors.index.json", "{}"), "tensors", "all 740"),
        (change_config(detector_config=3), "tensors", "config.json"),
        (change_config(model_type="florence2"), "taken", "model_type 'florence2'"),
        (write("config.json", "{"), "taken", "cannot be read"),
        (lambda folder: (folder / "model.safetensors").unlink(), "taken", "model.safetensors"),
        (
            lambda folder: (folder / "tokenizer.json").unlink(),
            "vocabulary",
            "Expected the tokenizer of a model with 377",
        ),
        (write("tokenizer.json", "{"), "vocabulary", "cannot be loaded"),
    ],
)
def test_bad_folders(copied_shapes, change, title, text):
    change(copied_shapes / "sam3")
    report = diagnose(checkpoint=copied_shapes)
    finding = the(report, "SAM 3", title)
    assert text in finding.value
    assert report.can_label == (finding.level == "ok")
    assert_every_trouble_has_a_cure(report)
    assert the(report, "Florence-2", "tensors").level == "ok"


@pytest.mark.parametrize(
    ("change", "title"),
    [
        (lambda folder: change_tensors(folder, lambda tensors: tensors.popitem()), "tensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: shutil.copy(SHAPES / "sam3" / "tokenizer.json", folder), "tokenizer"),
        (write("processor_config.json", "{"), "images"),
        (change_config(auto_map={}), "taken"),
        (write("generation_config.json", "{"), "answers"),
        (write("generation_config.json", '{"min_length": 4}'), "answers"),
    ],
)
def test_bad_florence2(copied_shapes, change, title):
    change(copied_shapes / "florence2")
    report = diagnose(checkpoint=copied_shapes)
    assert the(report, "Florence-2", title).level == "problem"
    assert [finding.title for finding in report.of_level("problem")] == [title]
    assert_every_trouble_has_a_cure(report)
    assert diagnose(checkpoint=copied_shapes, prompting="text").can_label


def test_other_files(tmp_path):
    torch.save({"model": {"image_encoder.trunk.x": torch.ones(1)}}, tmp_path / "mine.pt")
    (tmp_path / "sam3").mkdir()
    shutil.copy(tmp_path / "mine.pt", tmp_path / "sam3" / "sam2.1_hiera_large.pt")
    report = diagnose(checkpoint=tmp_path / "mine.pt")
    assert "SAM 2" in the(report, "SAM 3", "the argument").value
    assert "SAM 2" in the(report, "SAM 3", "tensors").value
    assert not report.can_label
    assert "sam2.1_hiera_large.pt" in the(diagnose(checkpoint=tmp_path / "sam3"), "SAM 3", "the argument").value
    (tmp_path / "sam3" / "sam3.pt").write_bytes(b"cut off")
    report = diagnose(checkpoint=tmp_path)
    assert "is damaged" in the(report, "SAM 3", "tensors").value
    assert_every_trouble_has_a_cure(report)


@pytest.fixture(scope="module")
def official_tensors():
    return narrow.NarrowOfficial(narrow.clip_vocabulary()).checkpoint()


def test_official_files(official_tensors, tmp_path, monkeypatch):
    torch.save(official_tensors, tmp_path / "sam3.pt")
    for backend in ("transformers", "sam3"):
        report = diagnose(checkpoint=tmp_path, backend=backend, prompting="text")
        assert report.can_label, format_report(report)
        assert the(report, "SAM 3", "good for").value == "text, boxes, video (SAM 3)"
        assert the(report, "SAM 3", "vocabulary").value == f"{find_bpe(tmp_path / 'sam3.pt')} (49408 tokens)"
    detector = {name: tensor for name, tensor in official_tensors.items() if name.startswith("detector.")}
    bare = {name.removeprefix("detector."): t for name, t in detector.items() if ".sam2_convs." not in name}
    torch.save({"model": bare}, tmp_path / "trained.pt")
    report = diagnose(checkpoint=tmp_path / "trained.pt")
    finding = the(report, "SAM 3", "good for")
    assert finding.level == "problem" and 'prompting="text"' in finding.cure and "trainer" in finding.value
    assert diagnose(checkpoint=tmp_path / "trained.pt", prompting="text").can_label
    torch.save(detector | {"tracker.model.video": torch.ones(1)}, tmp_path / "multiplex.pt")
    report = diagnose(checkpoint=tmp_path / "multiplex.pt", prompting="text")
    assert report.can_label and the(report, "SAM 3", "good for").value == "text (SAM 3.1)"
    report = diagnose(checkpoint=tmp_path / "multiplex.pt", prompting="text", backend="sam3")
    assert the(report, "SAM 3", "good for").cure == "Leave out --backend sam3."
    monkeypatch.setattr("autodistill_sam3.weights.vocabulary.find_spec", lambda name: None)
    report = diagnose(checkpoint=tmp_path, prompting="text")
    assert not report.can_label
    assert "--bpe-path" in the(report, "SAM 3", "vocabulary").cure
    assert_every_trouble_has_a_cure(report)


# Surroundings.


def test_environment(empty_machine, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"https://me:{TOKEN}@mirror.example/hub")
    monkeypatch.setenv(places.MODELS_VARIABLE, str(empty_machine / "mistyped"))
    monkeypatch.setenv("SECRET", "not to be shown")
    report = diagnose()
    assert the(report, "Surroundings", "HF_ENDPOINT").value == "https://***@mirror.example/hub"
    assert the(report, "Surroundings", places.MODELS_VARIABLE).level == "warning"
    assert "not to be shown" not in format_report(report)
    assert_every_trouble_has_a_cure(report)


def test_disks(empty_machine, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage(int(1e9)))
    report = diagnose(output=empty_machine / "not" / "yet")
    assert the(report, "Surroundings", "output disk").value == f"1.0 GB free in {empty_machine}"
    assert the(report, "Surroundings", "output disk").level == "warning"
    assert the(report, "Surroundings", "cache disk").level == "warning"
    assert the(diagnose(checkpoint="shapes"), "Surroundings", "cache disk").level == "ok"
    monkeypatch.setattr("os.access", lambda folder, mode: False)
    assert the(diagnose(output=empty_machine), "Surroundings", "output disk").level == "problem"
    assert the(diagnose(checkpoint="shapes"), "Surroundings", "output disk").level == "info"


# Self-test.


def test_self_test(empty_machine):
    report = diagnose(checkpoint="shapes", self_test=True, device="cpu")
    assert report.can_label, format_report(report)
    assert "3 of 3 objects found, 0 others, F1 1.00" in the(report, "Self-test", "shapes scene").value
    sam3 = the(report, "Self-test", "SAM 3").value
    assert "finite and trained;" in sam3 and "1 for a box" in sam3 and "all finite" in sam3
    assert "2 boxes" in the(report, "Self-test", "Florence-2").value
    assert [path.name for path in empty_machine.iterdir()] == ["empty"]


@pytest.fixture
def sam3_alone(monkeypatch):
    """Only SAM 3 is tested, to save time."""
    monkeypatch.setattr(self_test, "_label_scene", lambda run: Finding("Self-test", "shapes scene", "left out"))
    monkeypatch.setattr(self_test, "_run_florence2", lambda run: Finding("Self-test", "Florence-2", "left out"))


def test_wrong_results(monkeypatch):
    monkeypatch.setattr(GroundedSAM3, "predict", lambda model, path: sv.Detections.empty())
    report = diagnose(self_test=True)
    assert "0 of 3 objects" in the(report, "Self-test", "shapes scene").value
    assert the(report, "Self-test", "shapes scene").level == "problem"
    assert the(report, "Self-test", "SAM 3").level == "info"
    monkeypatch.setattr(bundled, "_CHECKOUT", REPOSITORY / "tests")
    finding = the(diagnose(self_test=True), "Self-test", "shapes scene")
    assert "Expected COCO annotations" in finding.value and "force-reinstall" in finding.cure


def test_random_weights(copied_shapes, sam3_alone):
    torch.manual_seed(0)
    model = Sam3VideoModel(Sam3VideoConfig.from_pretrained(copied_shapes / "sam3"))
    save_file(model.state_dict(), copied_shapes / "sam3" / "model.safetensors", metadata={"format": "pt"})
    report = diagnose(checkpoint=copied_shapes, self_test=True)
    finding = the(report, "Self-test", "SAM 3")
    assert not report.can_label and finding.level == "problem"
    for part in ("image encoder", "text encoder", "box head", "box decoder"):
        assert part in finding.value
    assert "memory" not in finding.value
    assert_every_trouble_has_a_cure(report)


def test_one_part_that_stayed_random(copied_shapes, sam3_alone):
    def fill(tensors):
        for name, tensor in tensors.items():
            if ".box_head." in name:
                tensor.normal_(std=0.02)

    change_tensors(copied_shapes / "sam3", fill)
    finding = the(diagnose(checkpoint=copied_shapes, self_test=True, prompting="text"), "Self-test", "SAM 3")
    assert finding.value == "weights as random as before any training in: box head"


def test_official_random_weights(official_tensors, tmp_path, sam3_alone):
    torch.save(official_tensors, tmp_path / "sam3.pt")
    report = diagnose(checkpoint=tmp_path, prompting="text", self_test=True)
    assert "image encoder" in the(report, "Self-test", "SAM 3").value
    assert the(report, "Self-test", "SAM 3").level == "problem"


@pytest.mark.parametrize("folder", ["sam3", "florence2"])
def test_weights_that_are_not_finite(copied_shapes, monkeypatch, folder):
    def spoil(tensors):
        next(tensor for name, tensor in tensors.items() if tensor.ndim == 2)[0, 0] = float("nan")

    change_tensors(copied_shapes / folder, spoil)
    left_out = {"_label_scene", "_run_sam3", "_run_florence2"} - {f"_run_{folder}"}
    for name in left_out:
        monkeypatch.setattr(self_test, name, lambda *arguments: Finding("Self-test", "left out", ""))
    report = diagnose(checkpoint=copied_shapes, self_test=True)
    [finding] = report.of_level("problem")
    assert finding.title == {"sam3": "SAM 3", "florence2": "Florence-2"}[folder]
    assert finding.value.startswith("1 tensors with non-finite values: ")
    assert finding.cure


class Overflowing:
    """A segmenter whose numbers are NaN."""

    def encode(self, images):
        return {"levels": (torch.full((1, 2), float("nan")),)}

    def segment_text(self, features, prompts, min_scores):
        return [TextResult(Instances.empty((450, 800), "text"), np.array([np.nan], dtype=np.float32))]

    def segment_boxes(self, features, boxes):
        return [Instances.empty((450, 800), "boxes")]


def out_of_memory(*arguments, **keywords):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nmore")


@pytest.mark.parametrize(
    ("load", "value", "cure"),
    [
        (
            lambda *arguments, **keywords: Overflowing(),
            "non-finite features; non-finite scores for text; no mask for text; no mask for a box",
            "--precision fp32",
        ),
        (out_of_memory, "out of GPU memory: CUDA out of memory. Tried to allocate 20.00 MiB.", "--prompting text"),
        (lambda *arguments, **keywords: None, "stopped by AttributeError", "report this"),
    ],
)
def test_runs_that_go_wrong(monkeypatch, sam3_alone, load, value, cure):
    monkeypatch.setattr("autodistill_sam3.segmentation.load_segmenter", load)
    report = diagnose(checkpoint="shapes", self_test=True)
    finding = the(report, "Self-test", "SAM 3")
    assert value in finding.value
    assert cure in finding.cure
    assert finding.level == "problem"
    assert the(report, "Self-test", "Florence-2").level == "ok"
