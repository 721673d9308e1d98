"""A name, folder or file -> a verified local checkpoint, and the model loaded from it."""

from autodistill_sam3.weights.fingerprint import sha256_of, sha256_of_code
from autodistill_sam3.weights.kinds import FLORENCE2, SAM3, CheckpointKind
from autodistill_sam3.weights.loading import load_image_processor, load_model, load_tokenizer
from autodistill_sam3.weights.places import (
    SHAPES,
    default_places,
    find_checkpoint,
    find_official_code,
    florence2_argument,
)
from autodistill_sam3.weights.sam3 import load_sam3, load_sam3_tokenizer, require_boxes
from autodistill_sam3.weights.vocabulary import clean_prompt, find_bpe, find_vocabulary

__all__ = [
    "FLORENCE2",
    "SAM3",
    "SHAPES",
    "CheckpointKind",
    "clean_prompt",
    "default_places",
    "find_bpe",
    "find_checkpoint",
    "find_official_code",
    "find_vocabulary",
    "florence2_argument",
    "load_image_processor",
    "load_model",
    "load_sam3",
    "load_sam3_tokenizer",
    "load_tokenizer",
    "require_boxes",
    "sha256_of",
    "sha256_of_code",
]
