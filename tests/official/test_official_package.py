"""Finding and importing Meta's package, and setting back what it changes in the process."""

from __future__ import annotations

import importlib
import importlib.machinery
import logging
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from autodistill_sam3.errors import CheckpointError, MissingPackageError, SettingError
from autodistill_sam3.segmentation.official_model import build_official_model
from autodistill_sam3.segmentation.official_package import import_official
from autodistill_sam3.segmentation.official_segmenter import OfficialSegmenter

from .leaks import nothing_leaks

SETTINGS = (
    "pass",
    "torch.set_float32_matmul_precision('high')",
    "torch.backends.cudnn.allow_tf32 = False",
    "torch.backends.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
)


def test_whatever_official_code_leaves_behind_is_set_back() -> None:
    is_new = hasattr(torch.backends, "fp32_precision")
    settings = [setting for setting in SETTINGS if is_new or "fp32_precision" not in setting]
    # In a process for each: a mixture of torch's older and newer settings cannot be undone.
    script = f"""
        import contextlib, logging, os, torch
        from autodistill_sam3.segmentation.official_package import contained
        from official.leaks import nothing_leaks
        backends = torch.backends
        precisions = lambda: [
            getattr(owner, "fp32_precision", None)
            for owner in (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn)
        ]
        def run(setting):
            exec(setting)
            before = precisions()
            os.environ["KEPT"] = "as before"
            # The older flag differs from the newer setting and cannot be read; once written, it can.
            is_readable = "matmul.fp32_precision = 'tf32'" not in setting
            try:
                with nothing_leaks() if is_readable else contextlib.nullcontext(), contained(torch.device("cpu")):
                    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
                    torch.autocast("cpu", dtype=torch.float16, cache_enabled=False).__enter__()
                    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = True
                    backends.cuda.enable_math_sdp(False)
                    os.environ.update(KEPT="not", TOKENIZERS_PARALLELISM="false")
                    logging.debug("sets up logging")
                    raise KeyError
            except KeyError:
                seen = precisions() == before, os.environ["KEPT"], "TOKENIZERS_PARALLELISM" in os.environ
                print(setting, *seen, flush=True)
        for setting in {settings!r}:
            if not (child := os.fork()):
                run(setting)
                os._exit(0)
            os.waitpid(child, 0)
    """
    assert run(script).splitlines() == [f"{setting} True as before False" for setting in settings]


def run(script: str) -> str:
    """What a script prints in a new process."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("TOKENIZERS_PARALLELISM", None)
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()


# Finding and importing the package.


def fake_clone(folder: Path, builder: str = "NAME = __name__") -> Path:
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("from .model_builder import *\n")
    (folder / "model_builder.py").write_text(builder)
    return folder


@pytest.fixture
def no_sam3_imported() -> Iterator[None]:
    kept = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "sam3"}
    for name in kept:
        del sys.modules[name]
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "sam3"]:
        del sys.modules[name]
    sys.modules.update(kept)


def test_importing_the_installed_package_changes_nothing() -> None:
    script = """
        import importlib.util
        from autodistill_sam3.segmentation.official_package import import_official
        from official.leaks import nothing_leaks
        with nothing_leaks():
            builder = import_official()
        print(builder.__file__ == importlib.util.find_spec("sam3.model_builder").origin)
        from sam3.model_builder import build_sam3_image_model
        print(build_sam3_image_model is builder.build_sam3_image_model)
    """
    assert run(script).split() == ["True", "True"]


@pytest.mark.usefixtures("no_sam3_imported")
@pytest.mark.parametrize("inside", ["sam3", "."])
def test_a_clone_is_used_before_the_installed_package_and_named(
    inside: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = tmp_path / "clone"
    folder = fake_clone(code / inside)
    with nothing_leaks(), caplog.at_level(logging.INFO, "autodistill_sam3"):
        builder = import_official(code)
        assert import_official(code) is builder
        assert import_official() is builder
    assert builder.NAME == "sam3.model_builder"
    assert Path(builder.__file__).parent == folder.resolve()
    assert [record.message for record in caplog.records] == [
        f"Running the official SAM 3 code in {folder.resolve()}"
    ] * 3
    with pytest.raises(SettingError, match="imported already"):
        import_official(fake_clone(tmp_path / "another"))


@pytest.mark.usefixtures("official")
def test_a_clone_is_refused_once_the_installed_package_runs(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"site-packages.*imported already"):
        import_official(fake_clone(tmp_path / "clone"))


def test_a_folder_without_the_package_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model_builder\.py"):
        import_official(tmp_path)


@pytest.mark.usefixtures("no_sam3_imported")
@pytest.mark.parametrize("names", [(), ("sam3",)])
def test_a_missing_package_is_said_with_the_command(
    names: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the current folder has a `sam3`, as models/ has: Python would import it as an empty package."""
    for name in names:
        (tmp_path / name).mkdir()
    monkeypatch.setattr(sys, "meta_path", [OnlyIn(tmp_path), *sys.meta_path])
    with pytest.raises(MissingPackageError, match=r"pip install 'autodistill-grounded-sam3\[sam3\]'"):
        import_official()
    if names:
        # Something else may have imported it so.
        importlib.import_module("sam3")
        with pytest.raises(MissingPackageError, match="not installed"):
            import_official()
        assert import_official(fake_clone(tmp_path / "clone")).NAME == "sam3.model_builder"


class OnlyIn:
    """Finds `sam3` in one folder and nowhere else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find_spec(
        self, name: str, path: object = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "sam3":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, [str(self._folder)])
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return spec


@pytest.mark.usefixtures("no_sam3_imported")
def test_another_package_of_that_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake_clone(tmp_path / "sam3") / "model_builder.py").unlink()
    monkeypatch.setattr(sys, "meta_path", [OnlyIn(tmp_path), *sys.meta_path])
    with pytest.raises(MissingPackageError, match="another of that name"):
        import_official()


@pytest.mark.usefixtures("no_sam3_imported")
@pytest.mark.parametrize(
    ("builder", "absent", "message"),
    [
        ("import sam3.model\nimport psutil", "psutil", r"needs psutil.*autodistill-grounded-sam3\[sam3\].*'psutil'"),
        ("import skimage.measure", "skimage", "needs skimage.*'scikit-image'"),
        ("from torch.nn.attention import sdpa_kernel", "torch.nn.attention", "torch 2.7 or newer, received 2"),
        ("import torch\ntorch.uint33", None, r"torch 2\.7 or newer"),
        ("from .decoder import TransformerDecoder", None, r"No module named.*autodistill-sam3 download sam3-code"),
        ("def build(:", None, r"sam3 cannot be imported: SyntaxError: invalid syntax.*download sam3-code"),
        ("raise RuntimeError('of torch')", None, "imported: RuntimeError: of torch.*download sam3-code"),
        ("assert False", None, "imported: AssertionError.*download sam3-code"),
        ("torch", None, "imported: NameError: name 'torch'.*download sam3-code"),
        ("import ctypes\nctypes.CDLL('libabsent.so.3')", None, r"imported: OSError: libabsent\.so\.3"),
        ("b'\\0'.decode('utf-16')", None, "imported: UnicodeDecodeError"),
    ],
)  # fmt: skip
def test_what_the_package_lacks_is_named_and_can_be_installed(
    builder: str, absent: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = fake_clone(tmp_path / "sam3", builder)
    fake_clone(folder / "model")
    with monkeypatch.context() as patch:
        if absent:
            patch.setitem(sys.modules, absent, None)
        with nothing_leaks(), pytest.raises(MissingPackageError, match=message):
            import_official(tmp_path)
    assert not [name for name in sys.modules if name.split(".")[0] == "sam3"]
    (folder / "model_builder.py").write_text("NAME = 'repaired'")
    # Python trusts its compiled copy for the rest of the second in which it was made.
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    assert import_official(tmp_path).NAME == "repaired"


CURRENT = """
def PositionEmbeddingSine(precompute_resolution): pass
def TransformerDecoder(resolution, stride): pass
def build_sam3_image_model(bpe_path, device, load_from_HF, enable_inst_interactivity): pass
"""


@pytest.mark.usefixtures("no_sam3_imported")
@pytest.mark.parametrize(
    ("present", "replacement", "named"),
    [
        ("def PositionEmbeddingSine(precompute_resolution): pass", "", "PositionEmbeddingSine"),
        ("TransformerDecoder", "Decoder", "TransformerDecoder"),
        ("def build_sam3_image_model", "def build", "build_sam3_image_model"),
        ("def build_sam3_image_model", "build_sam3_image_model = None\ndef build", "build_sam3_image_model"),
        ("resolution, stride", "size", "TransformerDecoder.*'resolution'"),
        ("enable_inst_interactivity", "boxes", "build_sam3_image_model.*enable_inst_interactivity"),
    ],
)
def test_another_version_is_refused_with_the_command_for_the_pinned_one(
    present: str, replacement: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_clone(tmp_path / "sam3", CURRENT.replace(present, replacement))
    message = rf"{named}.*another version.*autodistill-sam3 download sam3-code"
    with nothing_leaks(), pytest.raises(CheckpointError, match=message):
        build_official_model({}, tmp_path / "absent", code=tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "sam3"]:
        del sys.modules[name]
    monkeypatch.setattr(sys, "meta_path", [OnlyIn(tmp_path), *sys.meta_path])
    with nothing_leaks(), pytest.raises(MissingPackageError, match=message):
        build_official_model({}, tmp_path / "absent")


@pytest.mark.usefixtures("no_sam3_imported")
@pytest.mark.parametrize("processor", [None, "class Processor: pass", "raise RuntimeError('broken')"])
def test_another_version_or_a_broken_copy_of_the_processor_is_refused(processor: str | None, tmp_path: Path) -> None:
    folder = fake_clone(tmp_path / "sam3", CURRENT)
    (folder / "model").mkdir()
    (folder / "model" / "__init__.py").touch()
    if processor is not None:
        (folder / "model" / "sam3_image_processor.py").write_text(processor)
    import_official(folder)
    message = r"(sam3_image_processor|broken).*another version.*autodistill-sam3 download sam3-code"
    with nothing_leaks(), pytest.raises(MissingPackageError, match=message):
        OfficialSegmenter(torch.nn.Module(), device="cpu")
