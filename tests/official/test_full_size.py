"""The comparison at full size: whole on a GPU, and in CI with the narrow model, so that the script is known to run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from . import full_size, narrow


@pytest.mark.slow
def test_comparison_with_the_narrow_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In short, test_parity.py and test_files.py compare the same models."""
    monkeypatch.setattr(full_size, "PROMPTS", full_size.PROMPTS[:2])
    # What takes time at full size are the masks, also of the narrow model.
    image = full_size.questions(1)[0].image[100:340, 100:400]
    asked = [full_size.make_question(image, seed=0)]
    with narrow.narrowed_builder():
        report = full_size.compare("cpu", asked, narrow.clip_vocabulary(), tmp_path, lambda text: None)
    assert len(report.rows) == 3
    assert report.passed(), [(row.title, row.failures()) for row in report.rows]
    assert all(row.masks >= full_size.FEWEST for row in report.rows)
    assert "engine, sam3.pt, fp32" in report.markdown()


def test_comparison_notices_a_difference() -> None:
    report = full_size.report.Report("CPU", 1, 1)
    [question] = full_size.questions(1)
    masks = torch.rand(3, *question.image.shape[:2]).numpy() > 0.5
    arrays = {name: torch.rand(1, 5).numpy() for name in full_size.report.ARRAYS}
    arrays["text mask logits"] = torch.randn(1, 5, 4, 4).numpy()
    truth = full_size.Answer(arrays, [masks], masks)
    wrong = full_size.Answer({name: array + 1e-2 for name, array in arrays.items()}, [masks[:2]], ~masks)
    report.add("same", "fp32", [truth], [truth])
    assert report.passed()
    report.add("wrong", "fp32", [truth], [wrong])
    assert set(report.rows[1].failures()) == {*full_size.report.ARRAYS, "count", "mask IoU"}


@pytest.mark.gpu
@pytest.mark.slow
def test_comparison_at_full_size(tmp_path: Path) -> None:
    report = full_size.compare("cuda", full_size.questions(2), narrow.clip_vocabulary(), tmp_path, print)
    assert report.passed(), report.markdown()
