"""Meta's files of every kind, loaded as they are; and files that are none."""

from __future__ import annotations

import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autodistill_sam3 import CheckpointError, CheckpointNotFoundError, GroundedSAM3, SegmentAnything3
from autodistill_sam3.cli import main
from autodistill_sam3.instances import Boxes, Instances
from autodistill_sam3.ontology import PromptPairs
from autodistill_sam3.segmentation import load_segmenter
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.weights import SAM3, find_checkpoint, load_sam3, load_sam3_tokenizer
from autodistill_sam3.weights.official import read_official

from . import narrow
from .conftest import PROMPTS, Case

Tensors = dict[str, torch.Tensor]

BPE = narrow.clip_vocabulary()
ONTOLOGY = PromptPairs((("red circle", "ball"),))
HEAD = "detector.transformer.decoder.bbox_embed.layers.0.weight"
MASK_TOKENS = "tracker.sam_mask_decoder.mask_tokens.weight"


@pytest.fixture(scope="module")
def tensors(official_file: Path) -> Tensors:
    return dict(torch.load(official_file, weights_only=True))


def saved(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def as_sam3_1(tensors: Tensors) -> Tensors:
    """The image half under the names of `sam3.1_multiplex.pt`, with a video half that is not SAM 3's."""
    multiplex: Tensors = {}
    for name, tensor in tensors.items():
        if name.startswith(("tracker.sam_prompt_encoder.", "tracker.sam_mask_decoder.")):
            multiplex[name.replace("tracker.", "tracker.model.interactive_")] = tensor
            multiplex[name.replace("tracker.", "tracker.model.")] = torch.randn_like(tensor)
        elif name == "tracker.no_mem_embed":
            multiplex["tracker.model.interactivity_no_mem_embed"] = tensor
        elif name.startswith("tracker."):
            multiplex[name.replace("tracker.", "tracker.model.")] = torch.zeros(3, 5)
        elif ".vision_backbone.sam2_convs." in name:
            multiplex[name.replace("sam2_convs", "interactive_convs")] = tensor
            multiplex[name.replace("sam2_convs", "propagation_convs")] = torch.randn_like(tensor)
        else:
            multiplex[name] = tensor
    # Its necks have three levels.
    return {name: tensor for name, tensor in multiplex.items() if "convs.3." not in name}


def as_trainer(tensors: Tensors) -> dict[str, object]:
    bare = {name.removeprefix("detector."): tensor for name, tensor in tensors.items() if name.startswith("detector.")}
    return {
        "model": {name: tensor for name, tensor in bare.items() if ".sam2_convs." not in name},
        "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 1e-4}]},
        "epoch": 3,
        "best_meter_values": {},
    }


@pytest.fixture(scope="module")
def sam3_1_file(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(as_sam3_1(tensors), tmp_path_factory.mktemp("multiplex") / "sam3.1_multiplex.pt")


@pytest.fixture(scope="module")
def trainer_file(tensors: Tensors, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(as_trainer(tensors), tmp_path_factory.mktemp("trainer") / "checkpoint.pt")


def load(path: Path, **keywords: Any) -> TransformersSegmenter:
    return TransformersSegmenter.load(path, bpe_path=BPE, device="cpu", **keywords)


def text_answer(segmenter: TransformersSegmenter, case: Case) -> Instances:
    """Of the prompt that has instances in the first image."""
    [result] = segmenter.segment_text(segmenter.encode([case.image]), PROMPTS[1:2], [narrow.SCORE_THRESHOLD])
    return result.instances


@pytest.fixture(scope="module")
def expected_text(segmenter: TransformersSegmenter, cases: tuple[Case, ...]) -> Instances:
    return text_answer(segmenter, cases[0])


def box_answer(segmenter: TransformersSegmenter, case: Case) -> Any:
    count = len(case.boxes_xyxy)
    boxes = Boxes(case.boxes_xyxy, np.ones(count, np.float32), np.zeros(count, np.int64))
    [instances] = segmenter.segment_boxes(segmenter.encode([case.image]), [boxes])
    return instances


def assert_same(received: Any, expected: Any) -> None:
    np.testing.assert_array_equal(received.scores, expected.scores)
    np.testing.assert_array_equal(received.masks.to_dense(), expected.masks.to_dense())
    assert len(expected)


def test_sam3_names_are_read_unchanged(official_file: Path, tensors: Tensors) -> None:
    read = read_official(official_file)
    assert read.title == "SAM 3" and read.has_boxes and read.has_memory
    assert read.tensors.keys() == tensors.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in tensors.items())


def test_sam3_1_segments_text_and_boxes_exactly(
    segmenter: TransformersSegmenter, sam3_1_file: Path, cases: tuple[Case, ...], expected_text: Instances
) -> None:
    read = read_official(sam3_1_file)
    assert read.title == "SAM 3.1" and read.has_boxes and not read.has_memory
    loaded = load(sam3_1_file)
    assert_same(text_answer(loaded, cases[0]), expected_text)
    assert_same(box_answer(loaded, cases[0]), box_answer(segmenter, cases[0]))
    # What the file does not hold is not there, rather than random.
    assert loaded._model.tracker_model.memory_temporal_positional_encoding is None
    assert all(tensor.isfinite().all() for tensor in loaded._model.state_dict().values())


def test_sam3_1_with_a_box_head_of_unknown_names_is_refused(tensors: Tensors, tmp_path: Path) -> None:
    multiplex = {
        name.replace("interactive_", "clicking_").replace("interactivity_", "clicking_"): tensor
        for name, tensor in as_sam3_1(tensors).items()
    }
    renamed = saved(multiplex, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"turns boxes into masks.*sam3\.pt"):
        load(renamed)
    with pytest.raises(CheckpointError, match=r"clicking_convs"):
        load(renamed, boxes=False)
    without_neck = {name: tensor for name, tensor in multiplex.items() if ".clicking_convs." not in name}
    path = saved(without_neck, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"turns boxes into masks.*sam3\.pt"):
        load(path)
    assert load(path, boxes=False)
    with pytest.raises(CheckpointError, match=r"missing.*mask_decoder"):
        half = {name: tensor for name, tensor in as_sam3_1(tensors).items() if "mask_tokens" not in name}
        load(saved(half, tmp_path / "c.pt"))


def test_trainer_checkpoint_serves_text(trainer_file: Path, cases: tuple[Case, ...], expected_text: Instances) -> None:
    loaded = load(trainer_file, boxes=False)
    assert_same(text_answer(loaded, cases[0]), expected_text)
    with pytest.raises(CheckpointError, match=r"sam3\.pt"):
        box_answer(loaded, cases[0])


def test_trainer_checkpoint_says_where_the_tracker_is(
    trainer_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CheckpointError, match=r"The tracker half.*sam3\.pt"):
        GroundedSAM3(ONTOLOGY, checkpoint=trainer_file, bpe_path=BPE, florence2_checkpoint="shapes", prompting="boxes")
    model = SegmentAnything3(ONTOLOGY, checkpoint=trainer_file, bpe_path=BPE, confidence=0.0, device="cpu")
    assert len(model.predict(np.zeros((40, 60, 3), np.uint8))) > 0
    (tmp_path / "images").mkdir()
    flags = ["--checkpoint", str(trainer_file), "--bpe-path", str(BPE), "--florence2-checkpoint", "shapes"]
    assert main(["label", str(tmp_path / "images"), "--class", "ball", *flags]) == 1
    assert "sam3.pt" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_become_float32(tensors: Tensors, tmp_path: Path, dtype: torch.dtype) -> None:
    half = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    model = load_sam3(saved(half, tmp_path / "sam3.pt"))
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_official_names_in_safetensors(
    segmenter: TransformersSegmenter, tensors: Tensors, tmp_path: Path, cases: tuple[Case, ...]
) -> None:
    path = tmp_path / "sam3.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    assert_same(box_answer(load(find_checkpoint(SAM3, path)), cases[0]), box_answer(segmenter, cases[0]))


def test_files_from_before_zip_archives(tensors: Tensors, tmp_path: Path) -> None:
    path = tmp_path / "sam3.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert read_official(path).has_boxes


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(HEAD), r"1 missing \(detector_model.detr_decoder.box_head"),
        (without(MASK_TOKENS), r"1 missing \(tracker_model.mask_decoder.mask_tokens"),
        (without("tracker.maskmem_backbone.out_proj.weight"), "missing|incomplete"),
        (lambda tensors: tensors | {"detector.stray": torch.zeros(1)}, r"detector\.stray"),
        *(
            (lambda tensors, name=name: tensors | {name: torch.zeros(1)}, r"1 unexpected")
            for name in (
                "detector.dot_prod_scoring.garbage",
                "detector.backbone.vision_backbone.trunk.garbage",
                "detector.backbone.vision_backbone.sam2_convs.0.garbage.weight",
                "tracker.sam_mask_decoder.garbage.weight",
                "tracker.garbage",
            )
        ),
        *(
            (lambda tensors, name=name, tensor=tensor: tensors | {name: tensor}, "incomplete or not SAM 3")
            for name, tensor in (
                ("detector.backbone.language_backbone.resizer.weight", torch.zeros(())),
                ("detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.bias", torch.zeros(())),
                ("detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis", torch.zeros(())),
                ("detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis", torch.zeros(576, 5)),
                ("tracker.sam_prompt_encoder.point_embeddings.1.weight", torch.zeros(1, 7)),
                (HEAD, torch.zeros(3, 3, dtype=torch.int8)),
            )
        ),
        (without("detector.backbone.vision_backbone.trunk.blocks.0.attn.freqs_cis"), "1 tables of rotations for 2"),
        (lambda tensors: tensors | {HEAD: torch.zeros(3, 3)}, "mismatched.*box_head.*3, 3"),
        (lambda tensors: tensors | {MASK_TOKENS: torch.zeros(1, 1)}, "mismatched.*mask_tokens"),
        (without("detector.backbone.language_backbone.resizer.weight"), "incomplete"),
        (
            lambda tensors: tensors | {"detector.backbone.vision_backbone.trunk.blocks.0.attn.qkv.bias": torch.ones(2)},
            "incomplete",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    tensors: Tensors, tmp_path: Path, change: Callable[[Tensors], Tensors], message: str
) -> None:
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load(saved(change(tensors), tmp_path / "sam3.pt"))


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.999])
def test_truncated(official_file: Path, tmp_path: Path, share: float) -> None:
    content = official_file.read_bytes()
    path = tmp_path / "sam3.pt"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"damaged|cut off"):
        load(path)


def test_what_trainers_keep_beside_tensors(tensors: Tensors, tmp_path: Path) -> None:
    wrapped = {f"module.{name}": tensor for name, tensor in tensors.items()}
    content = {"state_dict": wrapped, "best": np.float64(0.3), "curve": np.arange(3.0), "epoch": np.int32(2)}
    assert read_official(saved(content, tmp_path / "wrapped.pt")).tensors.keys() == tensors.keys()


def test_a_checkpoint_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, object] = {"x": torch.zeros(1)}
    content["model"] = content
    with pytest.raises(CheckpointError, match="other tensors"):
        load(saved(content, tmp_path / "sam3.pt"))


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_file_is_executed(tensors: Tensors, tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "sam3.pt"
    torch.save({HEAD: tensors[HEAD], "evil": Evil(tmp_path / "ran")}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"getattr.*is ever executed.*state_dict"):
        load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "received list"),
        ({}, "named tensors"),
        ({"epoch": 3}, "named tensors"),
        ({"layer.weight": torch.zeros(2)}, "other tensors"),
        ({"model": {"image_encoder.trunk.patch_embed.proj.weight": torch.zeros(2)}}, "SAM 2"),
        ({"image_encoder.blocks.0.norm1.weight": torch.zeros(2)}, "SAM 1"),
        ({"detector_model.vision_encoder.x": torch.zeros(2)}, "transformers' names"),
        ({"language_model.x": torch.zeros(2)}, "Florence-2"),
        ({"backbone.vision_backbone.trunk.x": torch.zeros(2)}, "enable_segmentation"),
    ],
)
def test_other_content(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load(saved(content, tmp_path / "sam2_hiera_base_plus.pt"))


def test_vocabulary_is_looked_for_beside_the_file(
    official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sam3"
    folder.mkdir()
    (folder / "sam3.pt").symlink_to(official_file)
    from autodistill_sam3.weights import find_vocabulary, vocabulary

    def no_package(name: str) -> None:
        return None

    monkeypatch.setattr(vocabulary, "find_spec", no_package)
    with pytest.raises(CheckpointNotFoundError, match=r"(?s)bpe_simple_vocab.*openai/CLIP"):
        find_vocabulary(folder / "sam3.pt")
    places = [folder / "sam3" / "sam3" / "assets" / BPE.name, folder / "tokenizer.json", folder / BPE.name]
    for path in places:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(BPE.read_bytes())
        assert find_vocabulary(folder / "sam3.pt") == path


HEADLESS = gzip.compress(gzip.decompress(BPE.read_bytes()).split(b"\n", 1)[1])


@pytest.mark.parametrize("backend", ["transformers", "sam3"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"text",
        gzip.compress(b""),
        gzip.compress(b"version\na b\n"),
        gzip.compress(b"\xff\xfe"),
        BPE.read_bytes()[:5000],
        HEADLESS,
    ],
    # What gzip writes depends on the time, and processes that share the tests must agree on their names.
    ids=["nothing", "text", "nothing, packed", "two lines", "no UTF-8", "cut off", "without its first line"],
)
def test_damaged_vocabulary_says_where_to_get_it(
    official_file: Path, tmp_path: Path, content: bytes, backend: Any
) -> None:
    path = tmp_path / BPE.name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="openai/CLIP"):
        load_segmenter(official_file, backend=backend, bpe_path=path, device="cpu")


@pytest.mark.parametrize("content", ["", "{", json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}})])
def test_damaged_tokenizer_says_where_to_get_another(official_file: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match="openai/CLIP"):
        TransformersSegmenter.load(official_file, bpe_path=path, device="cpu")


def test_vocabulary_of_another_model_is_refused(official_file: Path) -> None:
    shapes = find_checkpoint(SAM3, "shapes")
    with pytest.raises(CheckpointError, match="49408"):
        TransformersSegmenter.load(shapes, bpe_path=BPE, device="cpu")
    with pytest.raises(CheckpointError, match="377"):
        TransformersSegmenter.load(official_file, bpe_path=shapes / "tokenizer.json", device="cpu")


def test_folder_without_a_tokenizer_takes_metas_vocabulary(converted_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sam3"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(converted_folder / name)
    (folder / BPE.name).symlink_to(BPE)
    assert load_sam3_tokenizer(folder, load_sam3(folder))("red circle")["input_ids"] == [49406, 736, 7117, 49407]


def test_several_checkpoints_in_one_folder(
    official_file: Path, converted_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "sam3"
    folder.mkdir()
    (folder / "sam2_hiera_base_plus.pt").symlink_to(official_file)
    with pytest.raises(CheckpointNotFoundError, match=r"holds sam2_hiera_base_plus\.pt, another model"):
        find_checkpoint(SAM3, tmp_path)
    for name in ("finetuned.pth", "sam3.1_multiplex.pt", "sam3.pt"):
        (folder / name).symlink_to(official_file)
        with caplog.at_level(logging.INFO, "autodistill_sam3"):
            assert find_checkpoint(SAM3, tmp_path) == folder / name
    assert "taken is sam3.pt" in caplog.text
    # Meta's builder leaves a config.json beside the file.
    (folder / "config.json").symlink_to(converted_folder / "config.json")
    assert find_checkpoint(SAM3, folder) == folder / "sam3.pt"
    (folder / "model.safetensors").symlink_to(converted_folder / "model.safetensors")
    with caplog.at_level(logging.INFO, "autodistill_sam3"):
        assert find_checkpoint(SAM3, folder) == folder
    assert "taken is model.safetensors" in caplog.text
    assert find_checkpoint(SAM3, folder / "sam3.pt") == folder / "sam3.pt"
    assert find_checkpoint(SAM3, folder, official=True) == folder / "sam3.pt"


def test_given_paths_are_all_that_is_looked_at(
    official_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from autodistill_sam3.weights import places, vocabulary

    def forbidden(*arguments: object, **keywords: object) -> None:
        raise AssertionError("searched")

    monkeypatch.setattr(places, "default_places", forbidden)
    monkeypatch.setattr(vocabulary, "find_spec", forbidden)
    monkeypatch.setattr("socket.socket.connect", forbidden)
    model = SegmentAnything3(ONTOLOGY, checkpoint=official_file, bpe_path=str(BPE), device="cpu")
    assert model.checkpoint == official_file
