"""What makes labelling fast changes no result: half precision, compiling, passes, stages and order."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import held_out_scenes

from autodistill_sam3 import devices
from autodistill_sam3.devices import batch_that_fits
from autodistill_sam3.errors import InputFolderError
from autodistill_sam3.labeling import find_images, has_at_least
from autodistill_sam3.labeling.overlap import in_order
from autodistill_sam3.queueing import one_ahead
from autodistill_sam3.segmentation import attention, transformers_segmenter, vision
from autodistill_sam3.segmentation.compiling import compiled
from autodistill_sam3.segmentation.transformers_segmenter import TransformersSegmenter
from autodistill_sam3.stages import StageTimes
from autodistill_sam3.weights import SAM3, find_checkpoint

PROMPTS = ["red circle", "star", "blue shape", "cross"]


def load(**keywords):
    return TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cpu", **keywords)


def outputs(segmenter, images, prompts=PROMPTS):
    """Scores and ViT tokens, before any threshold."""
    with torch.inference_mode():
        features = segmenter.encode(images)
        queries = [output for *_, output in segmenter._detect_pairs(features, prompts)]
    return torch.cat([output.scores for output in queries]), features.vision.last_hidden_state.float()


def deviation(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture(scope="module")
def images():
    return [scene.image for scene in held_out_scenes()[:3]]


def test_weights_in_half_precision_are_what_autocast_makes_of_them(images, monkeypatch):
    stored = outputs(load(precision="bf16"), images)
    monkeypatch.setattr(transformers_segmenter, "cast_weights", lambda *_: None)
    cast = outputs(load(precision="bf16"), images)
    assert all(torch.equal(one, other) for one, other in zip(stored, cast, strict=True))


def test_tanh_gelu_deviates_far_less_than_half_precision(images):
    """What a GPU computes in half precision, in place of the exact form."""
    exact, half, approximate = load(), load(precision="bf16"), load()
    for layer in approximate._model.detector_model.vision_encoder.backbone.layers:
        layer.mlp.activation_fn = torch.nn.GELU(approximate="tanh")
    expected = outputs(exact, images)
    of_half = [deviation(*pair) for pair in zip(outputs(half, images), expected, strict=True)]
    of_tanh = [deviation(*pair) for pair in zip(outputs(approximate, images), expected, strict=True)]
    print(f"scores and tokens: half precision {of_half}, tanh {of_tanh}")
    assert all(0 < tanh < half / 10 for tanh, half in zip(of_tanh, of_half, strict=True))


def equal_instances(one, other):
    assert len(one.instances) == len(other.instances)
    np.testing.assert_allclose(one.instances.scores, other.instances.scores, atol=1e-4)
    np.testing.assert_allclose(one.presence, other.presence, atol=1e-4)
    differing = one.instances.masks.to_dense() != other.instances.masks.to_dense()
    assert differing.mean() < 1e-4 if differing.size else True


def assert_compiled_equals_plain(faster, batches, prompts, min_score):
    plain, fast, minimum = load(), load(), [min_score] * len(prompts)
    fast._faster = faster
    for batch in batches:
        answers = [each.segment_text(each.encode(batch), prompts, minimum) for each in (plain, fast)]
        assert sum(len(result.instances) for result in answers[0])
        for one, other in zip(*answers, strict=True):
            equal_instances(one, other)
    first, again = (fast.segment_text(fast.encode(batches[-1]), prompts, minimum) for _ in range(2))
    for one, other in zip(first, again, strict=True):
        assert np.array_equal(one.instances.scores, other.instances.scores)
        assert np.array_equal(one.instances.masks.to_dense(), other.instances.masks.to_dense())


def test_the_functions_can_be_traced(images):
    """The graphs that `torch.compile` takes from them, run as they are."""

    def traced(function):
        return torch.compile(function, backend="eager", dynamic=False)

    assert_compiled_equals_plain(traced, [images[:1]], PROMPTS[:1], 0.0)


def test_what_only_a_gpu_does_in_half_precision_changes_little(images, monkeypatch):
    """Activations in products of matrices and FlexAttention, run on the CPU as they are written."""
    for module in (vision, attention):
        monkeypatch.setattr(module, "is_half_on_gpu", lambda weight: True)

    operations = set()

    def backend(graph, _):
        operations.update(node.target for node in graph.graph.nodes)
        return graph

    fast, expected = load(), outputs(load(), images[:1], PROMPTS[:1])
    fast._faster = lambda function: torch.compile(function, backend=backend, dynamic=False)
    deviations = [deviation(*pair) for pair in zip(outputs(fast, images[:1], PROMPTS[:1]), expected, strict=True)]
    assert max(deviations) < 1e-4, deviations
    assert {torch.ops.higher_order.flex_attention, torch._addmm_activation} <= operations


@pytest.mark.slow
# Torch's own compiler calls what torch has deprecated.
@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
def test_compiled_equals_plain(images):
    assert_compiled_equals_plain(compiled, [images[:1], images], PROMPTS, 0.05)


def test_what_is_compiled_runs_while_another_thread_compiles(monkeypatch):
    """Torch marks the whole process as tracing, and what is compiled already then refuses to run."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_with(function, backend="aot_eager"))

    def quick(values):
        return values + 1

    def long(values):
        for _ in range(300):
            values = values * 1.5 + values.sin()
        return values

    values, one, other = torch.ones(4), compiled(quick), compiled(long)
    one(values)
    thread = threading.Thread(target=other, args=(values,))
    thread.start()
    calls = 0
    while thread.is_alive():
        one(values)
        calls += 1
    thread.join()
    assert calls


def test_every_size_is_compiled(monkeypatch):
    """Torch gives up after eight and then runs the function as it is, in other kernels with other last bits."""
    sizes, compile_with = [], torch.compile

    def backend(graph, values):
        sizes.append(len(values[-1]))
        return graph

    monkeypatch.setattr(torch, "compile", lambda function, **_: compile_with(function, backend=backend, dynamic=False))
    double = compiled(lambda values: values * 2)
    for size in range(2, 22):
        assert torch.equal(double(torch.ones(size)), torch.full((size,), 2.0))
    assert sizes == list(range(2, 22))


def test_a_gpu_is_called_by_its_number(monkeypatch):
    """Each thread has a current GPU of its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.select_device() == torch.device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert devices.select_device("cuda") == torch.device("cuda:1")


@pytest.mark.gpu
# It recommends a setting that would change the numbers.
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_compiled_on_a_gpu_equals_plain_on_a_cpu(images, precision):
    exact = load()
    fast = TransformersSegmenter.load(find_checkpoint(SAM3, "shapes"), device="cuda", precision=precision).compiled()
    expected, _ = outputs(exact, images)
    found, _ = outputs(fast, images)
    assert deviation(found.cpu(), expected) < {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.02}[precision]


@given(st.integers(0, 9), st.integers(1, 4))
@settings(deadline=None)
def test_values_are_begun_ahead_and_come_out_in_order(count, at_once):
    begun, waited = [], []

    def begin(value):
        begun.append(value)
        return lambda: waited.append(value) or value

    for place, value in enumerate(in_order(begin, range(count), at_once=at_once)):
        assert value == place
        assert len(begun) <= (1 if place == 0 else min(place + at_once, count))
    assert begun == waited == list(range(count))


@pytest.mark.parametrize("at_once", [2, 3])
def test_results_are_waited_for_while_others_are_begun(at_once):
    begun = [threading.Event() for _ in range(9)]

    def begin(value):
        begun[value].set()
        # The first is alone.
        last = 0 if value == 0 else min(value + at_once - 1, 8)
        return lambda: begun[last].wait(20)

    assert all(in_order(begin, range(9), at_once=at_once))


def test_an_error_comes_out_where_its_result_would():
    def begin(value):
        return lambda: 1 // (3 - value)

    results = in_order(begin, range(9), at_once=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        list(results)


def test_passes_are_asked_for_one_ahead():
    asked = []
    ahead = one_ahead(asked.append(value) or value for value in range(3))
    assert asked == [0]
    for value in range(3):
        assert next(ahead) == value
        assert len(asked) == min(value + 2, 3)
    assert list(ahead) == []
    assert list(one_ahead([])) == []


def test_two_batches_in_flight_give_what_each_alone_gives(images):
    segmenter = load()
    minimum = [0.1] * len(PROMPTS)
    alone = [segmenter.segment_text(segmenter.encode([image]), PROMPTS, minimum) for image in images]
    begun = [segmenter.begin_text(segmenter.encode([image]), PROMPTS, minimum) for image in images]
    for [one], [other] in zip(alone, [finish() for finish in begun], strict=True):
        np.testing.assert_array_equal(one.presence, other.presence)
        np.testing.assert_array_equal(one.instances.masks.to_dense(), other.instances.masks.to_dense())
        np.testing.assert_array_equal(one.instances.scores, other.instances.scores)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 10)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_busy_gpu_counts_once(intervals):
    times = StageTimes()
    for start, length in intervals:
        times.add_gpu("ViT", lambda span=(float(start), float(start + length)): span)
        if start % 3 == 0:
            times.seconds  # noqa: B018  # as between batches
    covered = {second for start, length in intervals for second in range(start, start + length)}
    assert times.gpu_seconds == len(covered)
    assert times.seconds.get("ViT", 0) == sum(length for _, length in intervals)


def test_what_a_gpu_is_not_through_with_is_asked_again():
    over = []
    times = StageTimes()
    times.add_gpu("ViT", lambda: (1.0, 3.0) if over else None)
    assert times.seconds == {"ViT": 0.0}
    over.append(True)
    assert times.seconds == {"ViT": 2.0}
    assert times.gpu_seconds == 2.0


@pytest.mark.parametrize(("free_gb", "batch"), [(80, 8), (14, 8), (13, 4), (5, 2), (1, 1)])
def test_the_batch_fits_the_free_memory(monkeypatch, free_gb, batch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free_gb * 1e9), int(80e9)))
    assert batch_that_fits(torch.device("cuda:0"), 8) == batch
    assert batch_that_fits(torch.device("cpu"), 8) == 1


def test_streams_are_for_gpus_alone():
    cpu = torch.device("cpu")
    devices.follow(devices.mark(cpu))
    with devices.aside(cpu), devices.queue(cpu, devices.queue_of(cpu)):
        pass
    assert not devices._idle_streams


@pytest.mark.parametrize("count", range(6))
def test_counting_stops_early(tmp_path, count):
    for index in range(3):
        (tmp_path / f"{index}.png").touch()
    (tmp_path / "notes.txt").touch()
    assert has_at_least(count, tmp_path) == (count <= len(find_images(tmp_path)))
    with pytest.raises(InputFolderError):
        has_at_least(1, tmp_path / "nowhere")
