"""A name, folder or file -> a verified local checkpoint, and the model loaded from it."""

from autodistill_sam3.weights.loading import load_image_processor, load_model, load_tokenizer
from autodistill_sam3.weights.places import FLORENCE2, SAM3, SHAPES, CheckpointKind, find_checkpoint

__all__ = [
    "FLORENCE2",
    "SAM3",
    "SHAPES",
    "CheckpointKind",
    "find_checkpoint",
    "load_image_processor",
    "load_model",
    "load_tokenizer",
]
