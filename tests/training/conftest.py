"""The training command sets torch's flags for its whole process, which tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def flags_as_before(monkeypatch):
    for owner in (torch.backends.cuda.matmul, torch.backends.cudnn):
        monkeypatch.setattr(owner, "allow_tf32", owner.allow_tf32)
