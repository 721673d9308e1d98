"""The stages train, save, load and resume on a CPU; the package imports only what a bare torch machine has."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from autodistill_sam3.training.__main__ import main
from autodistill_sam3.training.batches import normalise, realise, tokenize
from autodistill_sam3.training.box_decoder import TRAINED_PARTS, points_inside
from autodistill_sam3.training.boxes import cxcywh_to_xyxy
from autodistill_sam3.training.checkpoints import load_florence2, load_sam3, new_sam3
from autodistill_sam3.training.configs import IMAGE_SIZE
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD, DetectorStage, run_mask_head
from autodistill_sam3.training.florence2 import (
    IGNORED,
    PHRASE_LENGTH,
    SEQUENCE_LENGTH,
    answer_labels,
    boxes_from_bins,
    location_bins,
    task_tokens,
)
from autodistill_sam3.training.prompts import plan_prompts
from autodistill_sam3.training.scenes import plan_scenes
from autodistill_sam3.training.tokenizers import CONTEXT_LENGTH, florence2_tokenizer, sam3_tokenizer
from autodistill_sam3.training.validation import PairResult, held_out_plans

FAST = ["--device", "cpu", "--scenes", "1", "--prompts", "2", "--evaluate-scenes", "1", "--log-every", "1"]
ALLOWED = {"torch", "numpy", "torchvision", "transformers", "safetensors", "tokenizers", "scipy", "autodistill_sam3"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def steps_logged(folder):
    with (folder / "curve.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "core_loss"]


@pytest.mark.slow
def test_all_stages_train_and_resume(tmp_path):
    detector, boxes, florence2 = (tmp_path / name for name in ("detector", "boxes", "florence2"))
    main(["fit", "detector", "--output", str(detector), "--steps", "2", *FAST])
    main(["fit", "detector", "--output", str(detector), "--steps", "3", *FAST])
    assert steps_logged(detector) == [1, 2, 3]
    main(["fit", "boxes", "--init", str(detector / "sam3"), "--output", str(boxes), "--steps", "3", *FAST])
    # Saving in the middle writes the optimiser's moments in bf16 and must leave the live ones alone.
    main(["fit", "florence2", "--output", str(florence2), "--steps", "3", "--evaluate-every", "2", *FAST])
    assert steps_logged(boxes) == steps_logged(florence2) == [1, 2, 3]
    before, after = load_sam3(detector / "sam3")[0].state_dict(), load_sam3(boxes / "sam3")[0].state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert changed
    # The memory is left for video.
    assert all(name.startswith(TRAINED_PARTS) for name in changed)
    shapes = Path(__file__).parents[2] / "models" / "shapes"
    for folder in (boxes / "sam3", florence2 / "florence2", shapes / "sam3", shapes / "florence2"):
        # Training pads to one length; whoever reads the file must not.
        tokenizer_file = json.loads((folder / "tokenizer.json").read_text())
        assert tokenizer_file["padding"] is tokenizer_file["truncation"] is None
        assert "max_length" not in json.loads((folder / "tokenizer_config.json").read_text())
    model, tokenizer = load_florence2(florence2 / "florence2")
    assert model.config.text_config.vocab_size == len(tokenizer)


@pytest.mark.slow
def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path):
    """Scenes, jitter and points depend on seed and step alone; only the moments' bf16 is lost in between.

    In short, test_all_stages_train_and_resume resumes as well.
    """
    main(["fit", "detector", "--output", str(tmp_path / "d"), "--steps", "1", *FAST])
    init = ["--init", str(tmp_path / "d" / "sam3"), *FAST]
    first, second = tmp_path / "once", tmp_path / "twice"
    main(["fit", "boxes", "--output", str(first), "--steps", "4", "--evaluate-every", "2", *init])
    shutil.copytree(first, second)
    # As if it had been stopped after step 2.
    main(["fit", "boxes", "--output", str(tmp_path / "half"), "--steps", "2", *init])
    (second / "state.pt").write_bytes((tmp_path / "half" / "state.pt").read_bytes())
    main(["fit", "boxes", "--output", str(second), "--steps", "4", *init])
    losses = {}
    for folder in (first, second):
        with (folder / "curve.csv").open() as file:
            losses[folder] = [float(row["value"]) for row in csv.DictReader(file) if row["name"] == "core_loss"]
    assert losses[second] == pytest.approx([*losses[first], *losses[first][2:]], rel=0.05)


def test_the_forward_equals_transformers_own_with_the_geometry_token():
    model, tokenizer = new_sam3(0)
    model.eval()
    batch = realise(held_out_plans(2)[0], IMAGE_SIZE, torch.device("cpu"))
    with torch.no_grad():
        output = DetectorStage(model, tokenizer).run(batch)
        ours = output.layers.layer(-1)
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD).repeat_interleave(batch.per_scene, 0)
        ids, mask = tokenize(tokenizer, batch.texts, images.device, CONTEXT_LENGTH)
        theirs = model.detector_model(
            pixel_values=images,
            input_ids=ids,
            attention_mask=mask,
            input_boxes=torch.zeros(len(ids), 1, 4),
            input_boxes_labels=torch.full((len(ids), 1), -10),
        )
    torch.testing.assert_close(ours.logits, theirs.pred_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(cxcywh_to_xyxy(ours.boxes_cxcywh), theirs.pred_boxes, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.presence_logits, theirs.presence_logits[:, 0], rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        masks, semantic = run_mask_head(model.detector_model, output, torch.tensor([1, 5]))
    torch.testing.assert_close(masks, theirs.pred_masks[[1, 5]], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(semantic, theirs.semantic_seg[[1, 5], 0], rtol=1e-3, atol=1e-4)


def test_tokenizers_know_every_word_and_add_clips_tokens(tmp_path):
    sam3_tokenizer().save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    ids = tokenizer(["A Red Circle", "zebra é"], padding="max_length", max_length=32, truncation=True)["input_ids"]
    assert len(ids[0]) == len(ids[1]) == 32
    assert ids[0][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids[0]
    assert ids[0][-1] == tokenizer.pad_token_id
    assert ids[0] == tokenizer("a red circle", padding="max_length", max_length=32)["input_ids"]
    assert tokenizer.decode(ids[1], skip_special_tokens=True) == "zebra é"


def test_the_fixed_lengths_cut_no_prompt():
    rng = np.random.default_rng(0)
    texts = plan_prompts(rng, plan_scenes(rng, 200), 4).texts
    for tokenizer, length in ((sam3_tokenizer(), CONTEXT_LENGTH), (florence2_tokenizer(), PHRASE_LENGTH)):
        assert max(len(ids) for ids in tokenizer(texts)["input_ids"]) < length
    _, mask = task_tokens(florence2_tokenizer(), texts, torch.device("cpu"))
    assert mask.sum(1).max() < SEQUENCE_LENGTH


def test_points_lie_on_the_visible_part_of_their_object():
    scenes = realise(held_out_plans(4)[0], 64, torch.device("cpu")).scenes
    points = points_inside(scenes)
    for image, slot in (scenes.visible > 0).nonzero().tolist():
        x, y = (points[image, slot, 0] * 64).long().tolist()
        assert scenes.top[image, y, x] == slot


def test_what_is_hardly_visible_is_ignored_and_no_target():
    plan = held_out_plans(16)[0]
    strict = realise(plan, 64, torch.device("cpu"), min_visible=0.9)
    assert strict.ignored.any()
    assert not (strict.ignored & strict.targets).any()
    asked = torch.from_numpy(plan.prompts.matches).flatten(0, 1)
    hidden = strict.scenes.visible.repeat_interleave(strict.per_scene, 0) == 0
    assert torch.equal(strict.ignored | strict.targets, asked & ~hidden)
    assert strict.present_rows.tolist() == strict.targets.any(1).nonzero()[:, 0].tolist()


def test_a_detection_on_an_ignored_object_is_neither_right_nor_wrong():
    scores = torch.tensor([0.9, 0.8, 0.7])
    iou, ignored = torch.tensor([[0.9], [0.1], [0.0]]), torch.tensor([[0.0], [0.8], [0.2]])
    assert PairResult.of(scores, iou, ignored).scores.tolist() == pytest.approx([0.9, 0.7])
    nothing = torch.zeros(3, 0)
    assert len(PairResult.of(scores, nothing, nothing).scores) == 3


def test_answers_are_phrase_then_boxes_from_left_to_right():
    tokenizer = florence2_tokenizer()
    phrases, mask = tokenize(tokenizer, ["red star", "blue ring"], torch.device("cpu"), 6, add_special_tokens=False)
    boxes = torch.tensor([[0.6, 0.1, 0.8, 0.3], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]]).expand(2, -1, -1)
    targets = torch.tensor([[True, True, False], [False, False, False]])
    labels = answer_labels(phrases, mask, boxes, targets, tokenizer)
    texts = [tokenizer.decode(row[row != IGNORED]) for row in labels]
    expected = "<loc_100><loc_200><loc_300><loc_400><loc_600><loc_100><loc_800><loc_300>"
    assert texts == [f"<s>red star{expected}</s>", "<s></s>"]
    assert (boxes_from_bins(location_bins(boxes)) - boxes).abs().max() < 0.006


def test_only_what_a_bare_torch_machine_has_is_imported():
    import ast

    folder = Path(__file__).parents[2] / "autodistill_sam3" / "training"
    # They measure finished checkpoints through the whole pipeline.
    measuring = {"asking.py", "table.py", "pictures.py", "video_table.py"}
    for path in (path for path in folder.glob("*.py") if path.name not in measuring):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in names:
                top = name.split(".")[0]
                assert top in ALLOWED or top in sys.stdlib_module_names, (path.name, name)
                assert top != "autodistill_sam3" or name.startswith("autodistill_sam3.training"), (path.name, name)


def test_importing_loads_neither_autodistill_nor_opencv():
    code = (
        "import sys, autodistill_sam3.training.__main__;"
        "sys.exit(any(name in sys.modules for name in ('autodistill', 'supervision', 'cv2', 'sam3')))"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
