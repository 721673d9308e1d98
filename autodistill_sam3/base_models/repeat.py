"""A run of `label()` as `run.json` keeps it, and the same model and arguments again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.base_models.launch import constructor_keywords
from autodistill_sam3.errors import SettingError
from autodistill_sam3.labeling import ImagesInput, LabelingPlan, read_run
from autodistill_sam3.layout import RUN
from autodistill_sam3.ontology import PromptPairs

if TYPE_CHECKING:
    from autodistill_sam3.base_models.base import LabelingModel

_PLACES = ("checkpoint", "florence2_checkpoint", "bpe_path")

logger = logging.getLogger("autodistill_sam3")


@dataclass(frozen=True)
class Repeat:
    """What a run was asked to do.

    Attributes:
        model: The name of the model's class.
        ontology: Prompts and classes.
        keywords: Of its constructor.
        source: What was labelled.
        label: Keywords of `label()` that decide what comes out, but for the output.
        identity: Hashes of the models, as the run had them.
    """

    model: str
    ontology: PromptPairs
    keywords: Mapping[str, Any]
    source: str
    label: Mapping[str, Any]
    identity: Mapping[str, Any]

    def build(self, *, has_weights: bool = True, **changes: Any) -> LabelingModel:
        """The model again.

        Args:
            has_weights: False for a model that only starts workers.
            changes: Keywords of the constructor that replace those of the run.

        Raises:
            SettingError: It is no model of this package, or has no such keyword.
            Whatever its constructor raises.
        """
        from autodistill_sam3 import base_models

        if self.model not in base_models.__all__:
            known = ", ".join(base_models.__all__)
            raise SettingError(
                f"Expected a run of {known}, received one of {self.model}, which has to be built by hand"
            )
        family: type[LabelingModel] = getattr(base_models, self.model)
        build = family if has_weights else family.without_weights
        try:
            model = build(self.ontology, **dict(self.keywords) | changes)
        except TypeError as error:
            raise SettingError(f"Expected keywords of {self.model}, received others: {error}") from error
        if has_weights and (identity := model._identity()) != self.identity:
            logger.warning(
                "The models are not those of the run, and may label otherwise: %s, not %s", identity, self.identity
            )
        return model


def as_repeat(model: LabelingModel, plan: LabelingPlan) -> dict[str, Any] | None:
    """What `run.json` keeps for :func:`read_repeat`, as JSON values; None for a model of somebody's own."""
    if type(model).__module__.rpartition(".")[0] != __name__.rpartition(".")[0]:
        # Nobody knows what its constructor takes.
        return None
    ontology, keywords = constructor_keywords(model)
    names = ("extension", "recursive", "limit", "batch_size", "group_near_duplicates", "record_confidence")
    return {
        "ontology": [list(pair) for pair in ontology.pairs],
        "keywords": {
            name: str(value.absolute()) if isinstance(value, Path) else value for name, value in keywords.items()
        },
        "source": _place(plan.source),
        "label": {name: getattr(plan, name) for name in names}
        | {"formats": list(plan.formats)}
        | {name: plan.settings[name] for name in ("tile", "nms_settings")}
        | {name: getattr(plan.split, name) for name in ("seed", "valid_share", "test_share", "group_by")},
    }


def read_repeat(path: Path) -> Repeat:
    """What a run was asked to do.

    Args:
        path: A `run.json`, or the labelled folder that it lies in.

    Raises:
        SettingError: There is none, it is of an earlier version, or what it labelled was a list of files.
    """
    run = read_run(path if path.is_dir() else path.parent)
    if run is None or (path.is_file() and path.name != RUN):
        raise SettingError(f"Expected a {RUN} of a labelled folder, received {path}")
    try:
        settings, repeat = run["settings"], run["provenance"]["repeat"]
        pairs = tuple((str(prompt), str(name)) for prompt, name in repeat["ontology"])
        found = Repeat(
            str(settings["model"]), PromptPairs(pairs), dict(repeat["keywords"]), repeat["source"],
            dict(repeat["label"]), dict(settings["identity"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise SettingError(
            f"Expected a run that says how to repeat it, received {path}, which lacks {error}. Earlier versions and "
            "`preprocess` write such; label again with the flags."
        ) from error
    if found.source is None:
        raise SettingError(f"Expected a run over a folder, glob, manifest or image, received {path}: a list of files")
    return found


def _place(source: ImagesInput | None) -> str | None:
    """What it is called from anywhere; None for a list."""
    return str(Path(source).absolute()) if isinstance(source, str | Path) else None
