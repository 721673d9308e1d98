"""Meta's package as its README and notebooks show it."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image

from autodistill_sam3.benchmark.engines.florence2_card import Florence2Card, fixed_boxes
from autodistill_sam3.benchmark.engines.reference import Found, stacked
from autodistill_sam3.benchmark.settings import Prompting, Settings, Work
from autodistill_sam3.errors import CheckpointError, MissingPackageError
from autodistill_sam3.segmentation.official_model import building
from autodistill_sam3.segmentation.official_package import contained, import_official


class SAM3Package:
    """`build_sam3_image_model` and `Sam3Processor`: one image, one prompt after another, bf16 autocast, TF32 allowed.

    With "both", the ten boxes go through `predict_inst` in one call, as in the notebook on interactive segmentation,
    and Florence-2 runs beside it.

    Args:
        settings: Name the checkpoint.
        prompting: "both" builds the half for boxes as well.
        device: Such as "cuda". On a CPU the package runs only with patches, which nothing is timed for.

    Raises:
        CheckpointError: There is no `sam3.pt`.
        MissingPackageError: The package or its vocabulary is not there.
    """

    def __init__(self, settings: Settings, prompting: Prompting, device: str) -> None:
        if settings.sam3_file is None:
            raise CheckpointError(f"The sam3 package reads sam3.pt only, received {settings.checkpoint}")
        if settings.bpe_path is None:
            raise MissingPackageError(
                "The sam3 package needs its vocabulary. Pass --bpe-path bpe_simple_vocab_16e6.txt.gz"
            )
        if device.startswith("cuda:"):
            # The package moves its model for the very word "cuda" alone.
            torch.cuda.set_device(device)
            device = "cuda"
        self._device = device
        builder = import_official() if device == "cpu" else importlib.import_module("sam3.model_builder")
        with self._patched(builder):
            self._model: Any = builder.build_sam3_image_model(
                bpe_path=str(settings.bpe_path),
                device=device,
                checkpoint_path=str(settings.sam3_file),
                load_from_HF=False,
                enable_inst_interactivity=prompting == "both",
            )
        processors = importlib.import_module("sam3.model.sam3_image_processor")
        self._processor: Any = processors.Sam3Processor(self._model, device=device)
        self._florence2 = None
        if prompting == "both" and settings.florence2 is not None:
            self._florence2 = Florence2Card(settings.florence2, device)

    def segment(self, image: Image.Image, work: Work) -> Found:
        """Masks of all prompts, and with "both" of ten boxes, brought to the host."""
        if self._florence2 is not None:
            self._florence2.ask(image, work.prompts)
        self._processor.set_confidence_threshold(work.threshold)
        parts = []
        with self._running():
            state = self._processor.set_image(image)
            for class_id, prompt in enumerate(work.prompts):
                self._processor.reset_all_prompts(state)
                state = self._processor.set_text_prompt(prompt=prompt, state=state)
                parts.append((class_id, state["masks"][:, 0].cpu().numpy(), state["scores"].float().cpu().numpy()))
            if work.prompting == "both":
                boxes = fixed_boxes((image.height, image.width))
                masks, iou, _ = self._model.predict_inst(state, box=boxes, multimask_output=False)
                parts.append((0, masks.reshape(-1, *masks.shape[-2:]).astype(np.bool_), iou.reshape(-1)))
        return stacked(parts, image)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        if self._device == "cpu":
            with contained(torch.device("cpu")):
                yield
            return
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        with torch.autocast("cuda", dtype=torch.bfloat16):
            yield

    @contextlib.contextmanager
    def _patched(self, builder: Any) -> Iterator[None]:
        if self._device != "cpu":
            yield
            return
        with building(builder):
            yield
