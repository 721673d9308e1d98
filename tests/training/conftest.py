"""The training command sets torch's flags for its whole process, which tests share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def flags_as_before():
    owners = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [owner.allow_tf32 for owner in owners]
    yield
    for owner, value in zip(owners, before, strict=True):
        owner.allow_tf32 = value
