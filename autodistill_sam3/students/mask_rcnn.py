"""torchvision's Mask R-CNN on a MobileNetV3 with a feature pyramid, small enough to be trained from scratch.

Sources: He et al., Mask R-CNN, 2017; torchvision.models.detection.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import supervision as sv
import torch
from torch import nn
from tqdm import tqdm

from autodistill_sam3.devices import select_device
from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.images import load_image
from autodistill_sam3.rle import rle_to_mask
from autodistill_sam3.students.data import TrainingData
from autodistill_sam3.students.judging import LEAST_CONFIDENCE, judge
from autodistill_sam3.students.packages import quiet_export
from autodistill_sam3.students.student import DEFAULT_EPOCHS, DEFAULT_SEED, Student, Trained
from autodistill_sam3.whole_files import replacing

_BATCH_SIZE, _IMAGE_SIZE = 8, 640
_LEARNING_RATE = 5e-4
_WEIGHT_DECAY = 1e-4
_LARGEST_GRADIENT = 5.0
# Of images of that size; others have them in proportion.
_ANCHOR_SIDES = (32, 64, 128, 256)
# Of MobileNetV3's layers, the last with strides 8, 16 and 32, and their channels.
_LAYERS = {"6": 40, "12": 112, "16": 960}
_WIDTH, _HIDDEN, _ROI = 128, 512, 7
# Per image, to learn classes from, and how many of them at most are objects.
_PROPOSALS, _OBJECTS_SHARE = 64, 0.5
# Networks that are trained for hours are slow to believe a batch; here there are a few hundred of them.
_NORM_MOMENTUM = 0.1
_MASK_THRESHOLD = 0.5
# Judging takes longer than an epoch where images are few.
_EPOCHS_BETWEEN_JUDGEMENTS = 5
_MIRRORED = 0.5

_Target = dict[str, torch.Tensor]


@dataclass(frozen=True)
class _Shape:
    """What a network is built by."""

    classes: tuple[str, ...]
    image_size: int


class MaskRCNNStudent(Student):
    """Mask R-CNN, of torchvision alone.

    Args:
        name: "mask-rcnn".
        weights: A file that training wrote.
        device: Such as "cuda:1" or "cpu".
    """

    def __init__(self, name: str = "mask-rcnn", weights: Path | None = None, *, device: str | None = None) -> None:
        super().__init__(name, weights, device=device)
        self._device = select_device(device)
        self._shape: _Shape | None = None
        self._model: Any = None
        if weights is not None:
            self._load(weights)

    def train(
        self,
        dataset_yaml: str | Path,
        epochs: int = DEFAULT_EPOCHS,
        *,
        output: str | Path = "student",
        image_size: int | None = None,
        batch_size: int | None = None,
        seed: int = DEFAULT_SEED,
        progress: bool = True,
    ) -> Trained:
        """See `Student.train`: AdamW, one cycle of the learning rate, mirrored images."""
        data = TrainingData(Path(dataset_yaml).parent, needs_masks=True)
        self.check(data, image_size)
        torch.manual_seed(seed)
        self._take_shape(self._shape_for(data, image_size))
        best = Path(output) / "best.pt"
        best.parent.mkdir(parents=True, exist_ok=True)
        batches = _Batches(data, batch_size or _BATCH_SIZE, seed, self._device)
        history = tuple(self._train(data, batches, epochs, best, progress))
        self._load(best)
        return Trained(best, history)

    def check(self, data: TrainingData, image_size: int | None) -> None:
        """See `Student.check`."""
        wanted = self._shape_for(data, image_size)
        if self._shape is None or self._shape == wanted:
            return
        if self._shape.classes != wanted.classes:
            raise CheckpointError(
                f"Expected weights for the classes {', '.join(wanted.classes)}, received some for "
                f"{', '.join(self._shape.classes)}. Begin without weights."
            )
        raise CheckpointError(
            f"Expected weights for images of {wanted.image_size} pixels, received some for {self._shape.image_size}. "
            "Leave the image size out."
        )

    def predict(self, input: Any, confidence: float = 0.5) -> sv.Detections:
        """See `Student.predict`."""
        shape, model = self._trained()
        pixels = _as_tensor(load_image(input)).to(self._device)
        model.train(False)
        # So that no masks are made of what is left out.
        model.roi_heads.score_thresh = confidence
        with torch.inference_mode():
            [found] = model([pixels])
        class_id = found["labels"].cpu().numpy() - 1
        return sv.Detections(
            xyxy=found["boxes"].cpu().numpy(),
            mask=(found["masks"][:, 0] > _MASK_THRESHOLD).cpu().numpy(),
            confidence=found["scores"].cpu().numpy(),
            class_id=class_id,
            data={"class_name": np.array(shape.classes, dtype=np.str_)[class_id]},
        )

    def export_onnx(self, path: Path) -> None:
        """See `Student.export_onnx`: one RGB image (3, H, W) of 0..1 in; boxes, labels from 1, scores, masks out."""
        shape, model = self._trained()
        model.train(False)
        model.roi_heads.score_thresh = LEAST_CONFIDENCE
        pixels = torch.rand(3, shape.image_size, shape.image_size, device=self._device)
        names = ["boxes", "labels", "scores", "masks"]
        with quiet_export():
            torch.onnx.export(
                # The newer exporter does not follow torchvision's data-dependent shapes.
                model, ([pixels],), str(path), input_names=["image"], output_names=names, dynamo=False,
                dynamic_axes={"image": {1: "height", 2: "width"}} | {name: {0: "objects"} for name in names},
            )  # fmt: skip

    def _train(
        self, data: TrainingData, batches: _Batches, epochs: int, best: Path, progress: bool
    ) -> Iterator[dict[str, float]]:
        """Train, and save the weights that do best; what was measured, epoch by epoch."""
        optimizer = torch.optim.AdamW(self._model.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=epochs * len(batches))
        highest = -1.0
        for epoch in tqdm(range(1, epochs + 1), desc="Training", unit="epoch", disable=not progress):
            row = {"epoch": float(epoch), "train/loss": self._train_epoch(batches, optimizer, schedule)}
            if epoch % _EPOCHS_BETWEEN_JUDGEMENTS == 0 or epoch == epochs:
                row |= self._judge(data)
                if row["valid/mask AP"] >= highest:
                    highest = row["valid/mask AP"]
                    self._save(best)
            yield row

    def _train_epoch(self, batches: _Batches, optimizer: Any, schedule: Any) -> float:
        self._model.train(True)
        losses = []
        for images, targets in batches:
            loss = sum(self._model(images, targets).values())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(self._model.parameters(), _LARGEST_GRADIENT)
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())

    def _judge(self, data: TrainingData) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            judged = judge(self.predict, data, "valid", Path(folder) / "answers.json", progress=False)
        precision = judged.evaluation.best.average_precision
        return {f"valid/mask {name}": precision[name] for name in ("AP", "AP50")}

    def _trained(self) -> tuple[_Shape, Any]:
        if self._shape is None:
            raise CheckpointError("Expected a trained Mask R-CNN, received one without weights. Train it first.")
        return self._shape, self._model

    def _shape_for(self, data: TrainingData, image_size: int | None) -> _Shape:
        own = _IMAGE_SIZE if self._shape is None else self._shape.image_size
        return _Shape(data.classes, image_size or own)

    def _take_shape(self, shape: _Shape) -> None:
        """Weights that were loaded stay."""
        if self._shape is None:
            self._shape, self._model = shape, _build(shape).to(self._device)

    def _save(self, path: Path) -> None:
        assert self._shape is not None
        state = {name: value.cpu() for name, value in self._model.state_dict().items()}
        content = {"classes": list(self._shape.classes), "image_size": self._shape.image_size, "model": state}
        with replacing(path, "wb") as file:
            torch.save(content, file)

    def _load(self, path: Path) -> None:
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            shape = _Shape(tuple(content["classes"]), int(content["image_size"]))
            model = _build(shape)
            model.load_state_dict(content["model"])
        # Its readers raise whatever they like.
        except Exception as error:
            raise CheckpointError(f"Expected weights of a Mask R-CNN trained here, received {path}: {error}") from error
        self._shape, self._model = shape, model.to(self._device)


class _Batches:
    """The images of the train split that have objects, in random order, half of them mirrored."""

    def __init__(self, data: TrainingData, batch_size: int, seed: int, device: torch.device) -> None:
        self._data = data
        self._items = [item for item in data.objects("train") if item[1]]
        self._batch_size = min(batch_size, len(self._items))
        self._generator = np.random.default_rng(seed)
        self._device = device

    def __len__(self) -> int:
        # A last batch of another size would be noisier.
        return len(self._items) // self._batch_size

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], list[_Target]]]:
        order = self._generator.permutation(len(self._items))
        for start in range(0, len(self) * self._batch_size, self._batch_size):
            pairs = [self._item(index) for index in order[start : start + self._batch_size]]
            yield [image for image, _ in pairs], [target for _, target in pairs]

    def _item(self, index: int) -> tuple[torch.Tensor, _Target]:
        image, objects = self._items[index]
        pixels = load_image(self._data.path(image))
        masks = np.array([rle_to_mask(item.segmentation) for item in objects if item.segmentation is not None])
        boxes = np.array([item.bbox for item in objects], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        if self._generator.random() < _MIRRORED:
            pixels, masks = pixels[:, ::-1], masks[:, :, ::-1]
            boxes[:, [0, 2]] = image.width - boxes[:, [2, 0]]
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.tensor([item.class_id + 1 for item in objects]),
            "masks": torch.from_numpy(masks.astype(np.uint8)),
        }
        return _as_tensor(pixels).to(self._device), {key: value.to(self._device) for key, value in target.items()}


def _as_tensor(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    """RGB (H, W, 3) ``uint8`` -> (3, H, W) ``float32`` in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255


def _build(shape: _Shape) -> Any:
    """The network, without weights: narrower than torchvision's own, and with fewer proposals."""
    from torchvision.models import mobilenet_v3_large
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor

    features = mobilenet_v3_large(weights=None, norm_layer=partial(nn.BatchNorm2d, momentum=_NORM_MOMENTUM)).features
    returned = {layer: str(index) for index, layer in enumerate(_LAYERS)}
    backbone = BackboneWithFPN(features, returned, list(_LAYERS.values()), _WIDTH)
    sides = tuple((side * shape.image_size / _IMAGE_SIZE,) for side in _ANCHOR_SIDES)
    classes, size = len(shape.classes) + 1, shape.image_size
    return MaskRCNN(
        backbone, min_size=size, max_size=size,
        rpn_anchor_generator=AnchorGenerator(sides, ((0.5, 1.0, 2.0),) * len(sides)),
        rpn_pre_nms_top_n_train=1000, rpn_post_nms_top_n_train=300, rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=200, box_batch_size_per_image=_PROPOSALS, box_positive_fraction=_OBJECTS_SHARE,
        box_head=TwoMLPHead(_WIDTH * _ROI**2, _HIDDEN), box_predictor=FastRCNNPredictor(_HIDDEN, classes),
        mask_head=MaskRCNNHeads(_WIDTH, (_WIDTH,) * 4, dilation=1),
        mask_predictor=MaskRCNNPredictor(_WIDTH, _WIDTH, classes), box_score_thresh=LEAST_CONFIDENCE,
    )  # fmt: skip
