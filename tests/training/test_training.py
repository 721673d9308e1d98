"""The stages train, save, load and resume on a CPU; the package imports only what a bare torch machine has."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer
from transformers.modeling_outputs import BaseModelOutput

from autodistill_sam3.training.__main__ import main
from autodistill_sam3.training.batches import normalise, realise, tokenize
from autodistill_sam3.training.checkpoints import load_florence2, load_sam3, new_florence2, new_sam3
from autodistill_sam3.training.detector import PIXEL_MEAN, PIXEL_STD, DetectorStage
from autodistill_sam3.training.evaluate import held_out_plans
from autodistill_sam3.training.florence2 import IGNORED, answer_labels, boxes_from_bins, location_bins, sharpen
from autodistill_sam3.training.tokenizers import florence2_tokenizer, sam3_tokenizer

FAST = ["--device", "cpu", "--scenes", "1", "--prompts", "2", "--evaluate-scenes", "1", "--log-every", "1"]
ALLOWED = {"torch", "numpy", "torchvision", "transformers", "safetensors", "tokenizers", "scipy", "autodistill_sam3"}

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


def steps_logged(folder):
    with (folder / "curve.csv").open() as file:
        return [int(row["step"]) for row in csv.DictReader(file) if row["name"] == "core_loss"]


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
    assert all(name.startswith(("tracker_neck.", "tracker_model.")) for name in changed)
    model, tokenizer = load_florence2(florence2 / "florence2")
    assert model.config.text_config.vocab_size == len(tokenizer)


def test_the_forward_equals_transformers_own_with_the_geometry_token():
    model, tokenizer = new_sam3(0)
    model.eval()
    batch = realise(held_out_plans(2)[0], 240, torch.device("cpu"))
    with torch.no_grad():
        ours = DetectorStage(model, tokenizer).run(batch).layers[-1]
        images = normalise(batch.scenes.images, PIXEL_MEAN, PIXEL_STD).repeat_interleave(batch.per_scene, 0)
        ids, mask = tokenize(tokenizer, batch.texts, images.device)
        theirs = model.detector_model(
            pixel_values=images,
            input_ids=ids,
            attention_mask=mask,
            input_boxes=torch.zeros(len(ids), 1, 4),
            input_boxes_labels=torch.full((len(ids), 1), -10),
        )
    torch.testing.assert_close(ours.logits, theirs.pred_logits, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.presence_logits, theirs.presence_logits[:, 0], rtol=1e-4, atol=1e-5)


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


def test_answers_are_phrase_then_boxes_from_left_to_right():
    tokenizer = florence2_tokenizer()
    phrases, mask = tokenize(tokenizer, ["red star", "blue ring"], torch.device("cpu"), add_special_tokens=False)
    boxes = torch.tensor([[0.6, 0.1, 0.8, 0.3], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 1.0, 1.0]]).expand(2, -1, -1)
    targets = torch.tensor([[True, True, False], [False, False, False]])
    labels = answer_labels(phrases, mask, boxes, targets, tokenizer)
    texts = [tokenizer.decode(row[row != IGNORED]) for row in labels]
    expected = "<loc_100><loc_200><loc_300><loc_400><loc_600><loc_100><loc_800><loc_300>"
    assert texts == [f"<s>red star{expected}</s>", "<s></s>"]
    assert (boxes_from_bins(location_bins(boxes)) - boxes).abs().max() < 0.006


def test_sharpening_scales_the_logits():
    model, _ = new_florence2(0)
    model.eval()
    inputs = {"encoder_outputs": BaseModelOutput(torch.randn(1, 5, model.config.text_config.d_model))}
    ids = torch.tensor([[2, 0]])
    with torch.no_grad():
        before = model(**inputs, decoder_input_ids=ids).logits
        sharpen(model, 3.0)
        torch.testing.assert_close(model(**inputs, decoder_input_ids=ids).logits, 3 * before, rtol=1e-3, atol=1e-4)


def test_only_what_a_bare_torch_machine_has_is_imported():
    import ast

    folder = Path(__file__).parents[2] / "autodistill_sam3" / "training"
    for path in folder.glob("*.py"):
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
