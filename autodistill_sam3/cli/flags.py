"""Flags that several sub-commands share, and what becomes of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3.errors import SettingError
from autodistill_sam3.ontology import PromptPairs

if TYPE_CHECKING:
    from autodistill_sam3.base_models.base import LabelingModel
    from autodistill_sam3.base_models.repeat import Repeat
    from autodistill_sam3.categories import Category

CHECKPOINT_KEYWORDS = (
    "checkpoint", "bpe_path", "florence2_checkpoint", "backend", "prompting", "device", "precision",
)  # fmt: skip
DECISION_KEYWORDS = ("confidence", "box_confidence", "overlapping_classes")
_MODEL_KEYWORDS = (*CHECKPOINT_KEYWORDS, *DECISION_KEYWORDS, "background", "presence_gate", "compile")


def add_model_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    wanted = add_wanted_flags(model)
    wanted.add_argument("--from-run", type=Path, metavar="RUN", help="as the run.json of a labelled folder says")
    add_checkpoint_flags(model)
    add_decision_flags(model)
    model.add_argument("--background", metavar="CLASS", help="a further class: what no object covers")
    model.add_argument("--presence-gate", type=float, help="ask Florence-2 only for prompts that SAM 3 finds present")
    model.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        help="run SAM 3 compiled (default: on a GPU, from 1,000 images on)",
    )
    add_verbosity(parser)


def add_wanted_flags(model: argparse._ArgumentGroup) -> argparse._MutuallyExclusiveGroup:
    """What to look for; another way to say that may be added to what is returned."""
    wanted = model.add_mutually_exclusive_group(required=True)
    wanted.add_argument(
        "--class", dest="classes", action="append", metavar="PROMPT[=CLASS]",
        help='what to look for and the class it becomes, such as "milk bottle=bottle"; repeat for more',
    )  # fmt: skip
    wanted.add_argument("--category", metavar="NAME", help="one that `categories` lists, with the settings it names")
    add_category_file(model)
    return wanted


def add_decision_flags(model: argparse._ArgumentGroup) -> None:
    model.add_argument("--confidence", type=float, help="for what text, or text and box together, found")
    model.add_argument("--box-confidence", type=float, help="for what boxes alone found")
    model.add_argument(
        "--threshold", dest="threshold", action="append", metavar="CLASS=VALUE", help="both of these, for one class"
    )
    model.add_argument(
        "--overlapping-classes",
        choices=["best", "keep"],
        help="an object found under two classes goes to the better one",
    )


def add_label_flags(output: argparse._ArgumentGroup) -> None:
    """What is written of a dataset."""
    from autodistill_sam3.labeling import FORMATS

    output.add_argument("--formats", nargs="+", choices=FORMATS, metavar="FORMAT", help=f"of {', '.join(FORMATS)}")
    output.add_argument("--record-confidence", action="store_true", help="write confidence-<name>.txt beside labels")
    output.add_argument("--plot", action="store_true", help="write review/: a page and sheets to judge the labels by")
    output.add_argument("--overwrite", action="store_true", help="replace an earlier run's dataset")
    output.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show a progress bar")


def add_share_flags(split: argparse._ArgumentGroup, what: str) -> None:
    split.add_argument("--seed", type=int, help="another seed gives another split")
    split.add_argument("--valid-share", type=float, metavar="SHARE", help=f"of the {what} that go to valid")
    split.add_argument("--test-share", type=float, metavar="SHARE", help=f"of the {what} that go to test")


def add_category_file(parser: Any) -> None:
    parser.add_argument("--category-file", type=Path, metavar="FILE", help="categories of your own, JSON or YAML")


def add_checkpoint_flags(model: argparse._ArgumentGroup) -> None:
    model.add_argument(
        "--checkpoint", help='"shapes", a SAM 3 folder or file, or a models root (default: models/ and caches)'
    )
    model.add_argument("--bpe-path", metavar="FILE", help="the vocabulary, if it is not with the checkpoint")
    model.add_argument("--backend", choices=["transformers", "sam3"], help="sam3: Meta's own code and files")
    model.add_argument("--florence2-checkpoint", metavar="DIR", help="a Florence-2 folder, if it lies elsewhere")
    model.add_argument("--prompting", choices=["text", "boxes", "both"])
    model.add_argument("--device", help='such as "cuda:1" or "cpu" (default: the best there is)')
    model.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"])


def add_verbosity(parser: argparse.ArgumentParser) -> None:
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="errors only, no progress bar")
    volume.add_argument("--verbose", action="store_true", help="say which files are used")


def build_model(
    options: argparse.Namespace, category: Category | None, repeat: Repeat | None = None, *, has_weights: bool = True
) -> LabelingModel:
    """The model that the flags, the category or the run to be repeated ask for; flags replace the others' settings."""
    from autodistill_sam3.base_models import GroundedSAM3

    settings: dict[str, Any] = dict(category.settings if category else repeat.keywords if repeat else {})
    thresholds = given_thresholds(options, settings.pop("thresholds", None))
    changes = settings | given(options, _MODEL_KEYWORDS)
    if repeat is not None:
        return repeat.build(has_weights=has_weights, **changes | ({"thresholds": thresholds} if thresholds else {}))
    build = GroundedSAM3 if has_weights else GroundedSAM3.without_weights
    return build(chosen_ontology(options, category), thresholds=thresholds, **changes)


def chosen_run(options: argparse.Namespace) -> Repeat | None:
    """The run that is to be repeated, if one is."""
    from autodistill_sam3.base_models.repeat import read_repeat

    return None if options.from_run is None else read_repeat(options.from_run)


def chosen_category(options: argparse.Namespace) -> Category | None:
    """The category that was asked for, if one was."""
    from autodistill_sam3.categories import find_category, read_categories

    if options.category is None:
        if options.category_file is not None:
            raise SettingError("Expected --category NAME with --category-file, received none")
        return None
    return find_category(options.category, read_categories(options.category_file))


def chosen_ontology(options: argparse.Namespace, category: Category | None) -> PromptPairs:
    """That of the flags, or of the category."""
    if category is not None:
        return category.ontology
    splits = [text.rpartition("=") if "=" in text else (text, "", text) for text in options.classes]
    return PromptPairs(tuple((prompt.strip(), name.strip()) for prompt, _, name in splits))


def given_thresholds(options: argparse.Namespace, others: Mapping[str, float] | None) -> dict[str, float]:
    """Thresholds by class: those of the flags in front of others."""
    return dict(others or {}) | dict(_parse_threshold(text) for text in options.threshold or ())


def _parse_threshold(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise SettingError(f"Expected --threshold CLASS=VALUE such as bottle=0.4, received {text!r}") from None


def given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The flags that were used; the others keep the default that the package has for them."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text)
