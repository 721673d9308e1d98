"""The exported graphs of the shapes checkpoint: against PyTorch, against the engine, and what is refused."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import REPOSITORY
from torchvision.transforms.v2.functional import resize

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
ort = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
pytest.importorskip("onnxscript", reason="needs the extra onnx")

# Behind what skips the file where packages are missing, which these imports need.
from autodistill_sam3.convert import convert  # noqa: E402
from autodistill_sam3.convert import onnx as convert_onnx  # noqa: E402
from autodistill_sam3.convert.graph_files import read_folder, read_graph, require  # noqa: E402
from autodistill_sam3.convert.graphs import Graph, Port, build_graphs  # noqa: E402
from autodistill_sam3.convert.onnx import check_graph, export_onnx, write_graph  # noqa: E402
from autodistill_sam3.convert.samples import sample_inputs  # noqa: E402
from autodistill_sam3.convert.tensorrt import trtexec_commands  # noqa: E402
from autodistill_sam3.errors import (  # noqa: E402
    CheckpointError,
    CheckpointNotFoundError,
    MissingPackageError,
    OutputFolderError,
    SettingError,
)
from autodistill_sam3.images import load_image  # noqa: E402
from autodistill_sam3.instances import Boxes  # noqa: E402
from autodistill_sam3.segmentation.box_decoder import decode_boxes, tracker_features  # noqa: E402
from autodistill_sam3.segmentation.detector import detect, encode_texts, image_tokens  # noqa: E402
from autodistill_sam3.segmentation.mask_head import mask_logits  # noqa: E402
from autodistill_sam3.segmentation.vision import encode_images  # noqa: E402

PROMPTS = ["green triangle", "blue square", "yellow cross", "red star"]
OUTPUTS = {
    "vision_encoder": [
        "detector_fine", "detector_middle", "detector_coarse", "image_embeddings", "high_resolution_fine",
        "high_resolution_middle",
    ],
    "text_encoder": ["text_features", "text_mask"],
    "detector": ["logits", "presence_logits", "boxes_xyxy", "mask_logits"],
    "box_decoder": ["mask_logits", "iou"],
}  # fmt: skip


@pytest.fixture(scope="module")
def model(shapes_segmenter):
    return shapes_segmenter._model


@pytest.fixture(scope="session")
def export(tmp_path_factory):
    """The folder of the graphs and what their checks measured; made once, which takes a minute."""
    folder = tmp_path_factory.mktemp("onnx") / "graphs"
    checks = []

    def recording(*arguments, **keywords):
        checks.extend(export_onnx(*arguments, **keywords))
        return checks

    # torch's exporter is all Python, and counting its lines for coverage doubles the time. The toy covers ours.
    tracer = sys.gettrace()
    sys.settrace(None)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("autodistill_sam3.convert.onnx.export_onnx", recording)
            lines = convert("shapes", "onnx", folder)
        assert len(lines) == len(checks) + 1
        return folder, checks
    finally:
        sys.settrace(tracer)


@pytest.fixture(scope="session")
def run(export):
    """`run(graph, {input: array})` -> {output: array}, by ONNX Runtime."""
    sessions = {}

    def call(name, inputs):
        if name not in sessions:
            sessions[name] = ort.InferenceSession(export[0] / f"{name}.onnx", providers=["CPUExecutionProvider"])
        outputs = sessions[name].run(None, inputs)
        return dict(zip((output.name for output in sessions[name].get_outputs()), outputs, strict=True))

    return call


class Double(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((16, 32), 2.0))

    def forward(self, values):
        return (values @ self.weight,)


class TimesBatch(Double):
    def forward(self, values):
        return (values @ self.weight * values.shape[0],)


class TimesThree(Double):
    """What the one above becomes when the size at which it was traced is frozen into the graph."""

    def forward(self, values):
        return (values @ self.weight * 3,)


@pytest.fixture(scope="module")
def toy():
    """A graph that is exported in a second, and inputs for it."""
    return Graph("toy", Double(), (Port("values", ("batch",), ""),), (Port("doubled", ("batch",), ""),)), (
        torch.arange(32.0).reshape(2, 16),
    )


@pytest.fixture(scope="module")
def written(toy, tmp_path_factory):
    """The toy's files, for tests that change copies of them."""
    folder = tmp_path_factory.mktemp("toy")
    write_graph(*toy, folder / "toy.onnx")
    return folder


@pytest.fixture
def toy_model(model, toy, monkeypatch):
    """A model of which only the toy is exported."""
    monkeypatch.setattr(convert_onnx, "build_graphs", lambda *_, **__: (toy[0],))
    monkeypatch.setattr(convert_onnx, "sample_inputs", lambda *_: {"toy": toy[1]})
    return model


@pytest.mark.parametrize("name", ["text_encoder", pytest.param("box_decoder", marks=pytest.mark.slow)])
def test_a_small_graph_agrees_with_pytorch(model, tmp_path, name):
    """The short form: all four graphs take a minute."""
    graphs = convert_onnx.build_graphs(model, with_boxes=True)
    samples = convert_onnx.sample_inputs(model, graphs)
    [graph] = [graph for graph in graphs if graph.name == name]
    path = tmp_path / f"{name}.onnx"
    convert_onnx.write_graph(graph, samples[name], path)
    checks = convert_onnx.check_graph(graph, samples[name], path)
    assert [check.output for check in checks] == OUTPUTS[name]
    assert all(check.deviation < 1e-4 for check in checks)


@pytest.mark.slow
def test_every_output_agrees_with_pytorch(export):
    _, checks = export
    assert {name: [check.output for check in checks if check.graph == name] for name in OUTPUTS} == OUTPUTS
    assert all(check.deviation < 1e-4 for check in checks)


@pytest.mark.slow
def test_files_are_plain_onnx_with_free_batch_sizes(export):
    folder, _ = export
    axes = {"vision_encoder": {"batch"}, "text_encoder": {"prompts"}, "detector": {"pairs"}}
    for graph in read_folder(folder):
        expected = axes.get(graph.path.stem, {"batch", "boxes"})
        for info in (*graph.inputs, *graph.outputs):
            assert {axis for axis in info.shape if isinstance(axis, str)} <= expected
            assert isinstance(info.shape[0], str)
        loaded = onnx.load(graph.path, load_external_data=False)
        assert [(opset.domain, opset.version) for opset in loaded.opset_import] == [("", 18)]
        assert str(REPOSITORY).encode() not in graph.path.read_bytes()


@pytest.mark.slow
def test_angles_of_the_rotary_embedding_are_folded(export):
    kinds = {node.op_type for node in onnx.load(export[0] / "vision_encoder.onnx", load_external_data=False).graph.node}
    assert not kinds & {"Sin", "Cos"}


@pytest.mark.slow
def test_manifest_describes_the_files(export, model):
    folder, _ = export
    manifest = json.loads((folder / "graphs.json").read_text())
    assert [graph["name"] for graph in manifest["graphs"]] == list(OUTPUTS)
    described = {
        graph["file"]: [(port["name"], port["dtype"], tuple(port["shape"])) for port in graph["inputs"]]
        for graph in manifest["graphs"]
    }
    for graph in read_folder(folder):
        assert described[graph.path.name] == [(info.name, info.dtype, info.shape) for info in graph.inputs]
    assert manifest["preprocessing"]["resize"]["height"] == model.config.detector_config.image_size
    assert manifest["tokenizer"]["length"] == 32


@torch.no_grad()
def test_detector_graph_equals_the_engine(model):
    graphs = {graph.name: graph for graph in build_graphs(model)}
    samples = sample_inputs(model, tuple(graphs.values()))
    vision = encode_images(model.detector_model, *samples["vision_encoder"])
    texts = encode_texts(model.detector_model, *samples["text_encoder"])
    pairs = torch.arange(2)
    tokens = image_tokens(model.detector_model, vision.levels[-1], vision.positions[-1])
    queries = detect(model.detector_model, pairs, texts, tokens)
    masks = mask_logits(model.detector_model, vision, pairs, queries, torch.ones_like(queries.logits, dtype=torch.bool))
    logits, presence, boxes, all_masks = graphs["detector"].module(*samples["detector"])
    torch.testing.assert_close(logits, queries.logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(presence, queries.presence_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(boxes, queries.boxes_xyxy, atol=1e-5, rtol=0)
    torch.testing.assert_close(all_masks.flatten(0, 1), masks, atol=1e-3, rtol=0)


@torch.no_grad()
def test_box_decoder_graph_equals_the_engine(model):
    graphs = {graph.name: graph for graph in build_graphs(model)}
    samples = sample_inputs(model, tuple(graphs.values()))
    features = tracker_features(model, encode_images(model.detector_model, *samples["vision_encoder"]))
    expected = decode_boxes(model, features, samples["box_decoder"][-1])
    for one, other in zip(graphs["box_decoder"].module(*samples["box_decoder"]), expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def pixel_values(image, size):
    """Preprocessing as `graphs.json` describes it."""
    resized = resize(torch.from_numpy(image).permute(2, 0, 1)[None], [size, size], antialias=True)
    return (resized.float() / 255 - 0.5).numpy() / np.float32(0.5)


def upsampled(logits, image):
    return F.interpolate(torch.from_numpy(logits)[None], image.shape[:2], mode="bilinear")[0].numpy() > 0


def mask_iou(one, other):
    return (one & other).sum() / (one | other).sum()


@pytest.fixture(scope="module")
def scene():
    return load_image(REPOSITORY / "examples" / "images" / "scene_00.jpg")


@pytest.fixture(scope="module")
def vision(scene, run, model):
    return run("vision_encoder", {"pixel_values": pixel_values(scene, model.config.detector_config.image_size)})


@pytest.mark.slow
def test_text_prompts_end_to_end(scene, vision, run, shapes_segmenter):
    tokens = shapes_segmenter._tokenizer(PROMPTS, padding="max_length", max_length=32, return_tensors="np")
    texts = run("text_encoder", {name: tokens[name] for name in ("input_ids", "attention_mask")})
    levels = {name: vision[name].repeat(len(PROMPTS), axis=0) for name in OUTPUTS["vision_encoder"][:3]}
    answer = run("detector", levels | texts)
    scores = 1 / (1 + np.exp(-answer["logits"])) / (1 + np.exp(-answer["presence_logits"]))[:, None]
    prompt, query = np.nonzero(scores > 0.5)
    masks = upsampled(answer["mask_logits"][prompt, query], scene)

    [expected] = shapes_segmenter.segment_text(shapes_segmenter.encode([scene]), PROMPTS, [0.5] * len(PROMPTS))
    instances = expected.instances
    assert prompt.tolist() == instances.prompt_index.tolist()
    assert len(prompt) >= 4
    np.testing.assert_allclose(scores[prompt, query], instances.scores, atol=1e-4)
    assert all(mask_iou(mask, instances.masks[index]) >= 0.99 for index, mask in enumerate(masks))


@pytest.mark.slow
def test_box_prompts_end_to_end(scene, vision, run, shapes_segmenter):
    xyxy = np.array([[152, 121, 298, 280], [532, 129, 640, 239], [239, 309, 402, 471]], np.float32)
    height, width = scene.shape[:2]
    features = {name: vision[name] for name in OUTPUTS["vision_encoder"][3:]}
    scaled = xyxy[None] / np.array([width, height, width, height], np.float32)
    answer = run("box_decoder", features | {"boxes_xyxy": scaled})
    masks = upsampled(answer["mask_logits"][0], scene)

    boxes = Boxes(xyxy, np.ones(3, np.float32), np.arange(3))
    [expected] = shapes_segmenter.segment_boxes(shapes_segmenter.encode([scene]), [boxes])
    assert len(expected) == 3
    np.testing.assert_allclose(answer["iou"][0], expected.scores, atol=1e-4)
    assert all(mask_iou(mask, expected.masks[index]) >= 0.99 for index, mask in enumerate(masks))


@pytest.mark.slow
def test_any_batch_size_gives_each_row_what_it_gives_alone(model, run):
    samples = sample_inputs(model, build_graphs(model))
    for graph in build_graphs(model):
        inputs = {port.name: value.numpy() for port, value in zip(graph.inputs, samples[graph.name], strict=True)}
        many = {name: np.concatenate([value, value[:1], value]) for name, value in inputs.items()}
        if graph.name == "box_decoder":
            many["boxes_xyxy"] = np.concatenate([many["boxes_xyxy"], many["boxes_xyxy"][:, :3]], axis=1)
        two, five = run(graph.name, inputs), run(graph.name, many)
        for name, value in two.items():
            assert five[name].shape[0] == 5
            columns = value.shape[1] if graph.name == "box_decoder" else None
            np.testing.assert_allclose(five[name][3:][:, :columns] if columns else five[name][3:], value, atol=1e-3)


@pytest.mark.slow
def test_changed_weight_is_noticed(export, model, tmp_path):
    graph = next(graph for graph in build_graphs(model) if graph.name == "text_encoder")
    sample = sample_inputs(model, build_graphs(model))["text_encoder"]
    changed = onnx.load(export[0] / "text_encoder.onnx")
    tensor = max((t for t in changed.graph.initializer if t.data_type == 1), key=lambda t: len(t.raw_data))
    values = onnx.numpy_helper.to_array(tensor).copy()
    tensor.raw_data = (values * np.float32(1.02)).tobytes()
    onnx.save(changed, tmp_path / "text_encoder.onnx")
    with pytest.raises(CheckpointError, match=r"text_features of text_encoder\.onnx within 0\.001.*prompts 1"):
        check_graph(graph, sample, tmp_path / "text_encoder.onnx")


def test_nan_and_other_shapes_are_deviations():
    ones = np.ones((2, 3), np.float32)
    assert convert_onnx._deviation(ones, ones) == 0
    assert not convert_onnx._deviation(ones, ones * np.nan) <= 1e-3
    assert convert_onnx._deviation(ones, ones[:1]) == np.inf
    assert convert_onnx._deviation(ones > 0, ones > 1) == 1
    assert convert_onnx._deviation(ones * 0, ones * 0) == 0


def test_size_frozen_into_a_graph_is_noticed(toy, tmp_path):
    graph, sample = toy
    frozen, free = (Graph("toy", module, graph.inputs, graph.outputs) for module in (TimesThree(), TimesBatch()))
    write_graph(frozen, sample, tmp_path / "toy.onnx")
    with pytest.raises(CheckpointError, match=r"doubled of toy\.onnx .*batch 1"):
        check_graph(free, sample, tmp_path / "toy.onnx")


def test_failing_export_says_which_graph_and_what_to_do(toy, tmp_path):
    class Unknowable(Double):
        def forward(self, values):
            return (values @ self.weight if values.sum() > 0 else values,)

    graph, sample = toy
    with pytest.raises(CheckpointError, match=r"(?s)export toy with torch .*constraints\.txt"):
        write_graph(Graph("toy", Unknowable(), graph.inputs, graph.outputs), sample, tmp_path / "toy.onnx")
    assert not list(tmp_path.iterdir())


def test_exporter_says_nothing(toy_model, tmp_path, capfd, caplog):
    [check] = export_onnx(toy_model, tmp_path / "out")
    assert (check.graph, check.output, check.deviation) == ("toy", "doubled", 0.0)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"toy.onnx", "toy.onnx.data", "graphs.json"}
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET


@pytest.mark.parametrize("damage", ["garbage", "cut weights", "no weights", "nothing"])
def test_damaged_file_is_refused(written, tmp_path, damage):
    path, weights = tmp_path / "toy.onnx", tmp_path / "toy.onnx.data"
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    if damage == "garbage":
        path.write_bytes(b"no graph")
    elif damage == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-4])
    else:
        (weights if damage == "no weights" else path).unlink()
    with pytest.raises(CheckpointError, match=r"valid ONNX file, received .*toy\.onnx"):
        read_graph(path)


def test_nothing_stays_after_a_failure(toy_model, tmp_path, monkeypatch):
    monkeypatch.setattr(convert_onnx, "_deviation", lambda *_: float("nan"))
    with pytest.raises(CheckpointError, match="doubled"):
        export_onnx(toy_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_full_disk_is_not_blamed_on_the_model(toy_model, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.onnx.ONNXProgram.save", full)
    with pytest.raises(OutputFolderError, match="No space left"):
        export_onnx(toy_model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_graph_that_onnx_runtime_cannot_run_is_refused(toy, written):
    path = written / "toy.onnx"
    wider = Graph("toy", torch.nn.Identity(), toy[0].inputs, ())
    with pytest.raises(CheckpointError, match=r"ONNX Runtime .* to run toy\.onnx"):
        check_graph(wider, (torch.zeros(2, 7),), path)


def test_folder_in_use_is_left_alone(toy_model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputFolderError):
        export_onnx(toy_model, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_missing_package_is_named_with_the_command(toy_model, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(MissingPackageError, match=r"onnxscript.*\n?.*pip install 'autodistill-grounded-sam3\[onnx\]'"):
        export_onnx(toy_model, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackageError, match="package onnx,"):
        require("onnx")


def test_model_in_16_bits_is_refused(tmp_path):
    half = torch.nn.Linear(2, 2).half()
    with pytest.raises(SettingError, match=r"torch\.float16"):
        export_onnx(half, tmp_path / "out")


def test_model_without_tracker_has_three_graphs(model):
    half = SimpleNamespace(detector_model=model.detector_model, config=model.config)
    graphs = build_graphs(half, with_boxes=False)
    assert [graph.name for graph in graphs] == list(OUTPUTS)[:3]
    samples = sample_inputs(half, graphs)
    with torch.no_grad():
        assert len(graphs[0].module(*samples["vision_encoder"])) == len(graphs[0].outputs) == 3


def flags_of(command):
    program, *arguments = shlex.split(command)
    assert program == "trtexec"
    return dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)


def shapes_of(flags, profile):
    pairs = (entry.split(":") for entry in flags[f"{profile}Shapes"].split(","))
    return {name: tuple(int(size) for size in shape.split("x")) for name, shape in pairs}


@pytest.mark.slow
def test_trtexec_lines_have_every_input(export):
    folder, _ = export
    graphs, commands = read_folder(folder), trtexec_commands(folder, max_batch=4, max_pairs=6, max_boxes=9)
    assert len(commands) == 4
    largest = {"batch": 4, "prompts": 6, "pairs": 6, "boxes": 9}
    for graph, command in zip(graphs, commands, strict=True):
        flags = flags_of(command)
        assert flags["onnx"] == str(graph.path)
        assert flags["saveEngine"] == str(graph.path.with_suffix(".engine"))
        assert "fp16" in flags
        for profile, sizes in (("min", dict.fromkeys(largest, 1)), ("opt", largest), ("max", largest)):
            expected = {info.name: tuple(sizes.get(axis, axis) for axis in info.shape) for info in graph.inputs}
            assert shapes_of(flags, profile) == expected


@pytest.mark.slow
def test_trtexec_precision(export):
    folder, _ = export
    assert ["bf16" in flags_of(line) for line in trtexec_commands(folder, precision="bf16")] == [True] * 3 + [False]
    assert not any("16" in name for line in trtexec_commands(folder, precision="fp32") for name in flags_of(line))


@pytest.mark.slow
def test_trtexec_lines_survive_odd_folder_names(export, tmp_path):
    odd = tmp_path / "it's here; 100 %"
    shutil.copytree(export[0], odd)
    assert all(str(odd) in flags_of(line)["onnx"] for line in trtexec_commands(odd))


@pytest.mark.slow
def test_trtexec_refuses_what_it_cannot_use(export, tmp_path):
    folder, _ = export
    with pytest.raises(SettingError, match="int8"):
        trtexec_commands(folder, precision="int8")
    with pytest.raises(SettingError, match=r"size of boxes, received 0"):
        trtexec_commands(folder, max_boxes=0)
    with pytest.raises(CheckpointNotFoundError, match=r"graphs\.json"):
        trtexec_commands(tmp_path)
    shutil.copy(folder / "graphs.json", tmp_path)
    with pytest.raises(CheckpointError, match=r"vision_encoder\.onnx"):
        trtexec_commands(tmp_path)
    (tmp_path / "graphs.json").write_text("[]")
    with pytest.raises(CheckpointError, match="list of graphs"):
        trtexec_commands(tmp_path)


def test_trtexec_refuses_axes_it_does_not_know(written, tmp_path):
    shutil.copytree(written, tmp_path, dirs_exist_ok=True)
    loaded = onnx.load(tmp_path / "toy.onnx")
    for value in (*loaded.graph.input, *loaded.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "rows"
    del loaded.graph.value_info[:]
    onnx.save(loaded, tmp_path / "toy.onnx")
    (tmp_path / "graphs.json").write_text(json.dumps({"graphs": [{"file": "toy.onnx"}]}))
    with pytest.raises(CheckpointError, match="rows"):
        trtexec_commands(tmp_path)


@pytest.mark.slow
def test_the_folder_has_its_tokenizer_and_the_command_line_prints_the_engines(export, capsys):
    from autodistill_sam3.cli import main
    from autodistill_sam3.weights import load_tokenizer

    folder, _ = export
    assert load_tokenizer(folder)(["red circle"])["input_ids"]
    assert main(["convert", "--input", str(folder), "--format", "tensorrt"]) == 0
    assert capsys.readouterr().out.count("trtexec --onnx=") == 4
