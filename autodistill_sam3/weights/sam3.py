"""A SAM 3 checkpoint of any layout -> the one model that the engine runs, and its tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.errors import CheckpointError
from autodistill_sam3.weights.loading import load_model, load_tensors, quiet_transformers
from autodistill_sam3.weights.official import OfficialCheckpoint, read_official, to_transformers, video_config
from autodistill_sam3.weights.official.config import VIT_NORM_EPSILON
from autodistill_sam3.weights.official.files import TRACKER_HELP
from autodistill_sam3.weights.vocabulary import BPE_HELP, find_vocabulary, load_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Sam3VideoConfig, Sam3VideoModel

# The parts of the tracker that turn a box into a mask; its others remember a video.
_BOX_PARTS = (
    "tracker_neck.",
    "tracker_model.prompt_encoder.",
    "tracker_model.mask_decoder.",
    "tracker_model.shared_image_embedding.",
    "tracker_model.no_memory_embedding",
)


def load_sam3(checkpoint: Path, *, boxes: bool = True) -> Sam3VideoModel:
    """Load SAM 3 in ``float32``, on the CPU, for inference.

    Args:
        checkpoint: A folder in transformers layout, or one of Meta's files (`sam3.pt`, `sam3.1_multiplex.pt`, what
            Meta's trainer saves), whose tensors are translated in memory. Parts that a file does not hold are None in
            the model: the memory in SAM 3.1's, the whole tracker in a trainer's.
        boxes: Whether the model has to turn boxes into masks.

    Raises:
        CheckpointError: A file is damaged or of another model, tensors are missing, unexpected or of another shape, or
            boxes are asked of a file without the tracker half.
    """
    from transformers import Sam3VideoModel

    if checkpoint.is_dir():
        return load_model(Sam3VideoModel, checkpoint, _folder_config(checkpoint))
    official = read_official(checkpoint)
    require_boxes(official.has_boxes or not boxes, checkpoint)
    return _from_official(official)


def require_boxes(has_boxes: bool, checkpoint: Path | None = None) -> None:
    """Say where the missing half is when boxes are asked of a checkpoint that cannot segment them.

    Raises:
        CheckpointError: `has_boxes` is False.
    """
    if not has_boxes:
        received = checkpoint or "one with the detector alone"
        raise CheckpointError(f"Expected a checkpoint that turns boxes into masks, received {received}. {TRACKER_HELP}")


def load_sam3_tokenizer(
    checkpoint: Path, model: Sam3VideoModel, bpe_path: str | Path | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a checkpoint, or of `bpe_path`; see `find_vocabulary`.

    Raises:
        CheckpointNotFoundError: There is none.
        CheckpointError: It is damaged, or of another model.
    """
    path = find_vocabulary(checkpoint, bpe_path)
    tokenizer = load_vocabulary(path)
    config: Any = model.config
    tokens = config.detector_config.text_config.vocab_size
    # A folder's own tokenizer may leave some of the model's embeddings unused; CLIP's has its two special tokens last.
    is_own = path == checkpoint and len(tokenizer) <= tokens
    if not is_own and tokenizer("")["input_ids"] != [tokens - 2, tokens - 1]:
        raise CheckpointError(
            f"Expected the tokenizer of a model with {tokens} tokens, received {path} with {len(tokenizer)}, which is "
            f"of another. {BPE_HELP}"
        )
    return tokenizer


def _folder_config(folder: Path) -> Sam3VideoConfig:
    from transformers import Sam3VideoConfig

    try:
        with quiet_transformers():
            config: Any = Sam3VideoConfig.from_pretrained(folder, local_files_only=True)
        # transformers' default is another, and folders are saved with it.
        for part in (config.detector_config, config.tracker_config):
            part.vision_config.backbone_config.layer_norm_eps = VIT_NORM_EPSILON
    # Wrong values make transformers' strict configurations raise types of their own.
    except Exception as error:
        raise CheckpointError(f"{folder / 'config.json'} is not of a SAM 3 model: {error}") from error
    loaded: Sam3VideoConfig = config
    return loaded


def _from_official(official: OfficialCheckpoint) -> Sam3VideoModel:
    from transformers import Sam3VideoModel

    try:
        tensors = to_transformers(official.tensors)
        config = video_config(official.tensors, tensors)
    # Tensors of impossible shapes and kinds.
    except (LookupError, ValueError, TypeError, ArithmeticError, RuntimeError) as error:
        reason = error.args[0] if error.args else error
        raise CheckpointError(
            f"{official.path} is incomplete or not SAM 3: {reason}. Copy or download it again."
        ) from error

    def may_lack(name: str) -> bool:
        if name.startswith("detector_model."):
            return False
        return not official.has_memory if not name.startswith(_BOX_PARTS) else not official.has_boxes

    wanted = {name: tensor for name, tensor in tensors.items() if official.has_memory or not _is_memory(name)}
    return load_tensors(Sam3VideoModel, config, wanted, official.path, may_lack)


def _is_memory(name: str) -> bool:
    return name.startswith("tracker_model.") and not name.startswith(_BOX_PARTS)
