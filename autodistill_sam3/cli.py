"""The command `autodistill-sam3`: flags -> the objects of the package. No logic of its own."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autodistill_sam3 import __version__
from autodistill_sam3.errors import AutodistillSAM3Error, SettingError
from autodistill_sam3.ontology import PromptPairs

if TYPE_CHECKING:
    import supervision as sv

    from autodistill_sam3.base_models import GroundedSAM3


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: Without the program's name; by default those of the process.

    Returns:
        The exit status: 0, 1 after an error or when the doctor finds that labelling cannot run, 130 after Ctrl-C.
    """
    options = build_parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    level = logging.DEBUG if options.verbose else logging.ERROR if options.quiet else logging.INFO
    logging.getLogger("autodistill_sam3").setLevel(level)
    try:
        status: int | None = options.run(options)
    except (AutodistillSAM3Error, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"Stopped.{options.after_stop}", file=sys.stderr)
        return 130
    return status or 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all sub-commands."""
    parser = argparse.ArgumentParser(prog="autodistill-sam3", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_label(commands)
    _add_predict(commands)
    _add_demo(commands)
    _add_download(commands)
    _add_convert(commands)
    _add_doctor(commands)
    return parser


def _add_label(commands: Any) -> None:
    parser = commands.add_parser("label", help="label a folder of images")
    parser.add_argument("input_folder", metavar="IMAGES", help="the folder of images")
    _add_model_flags(parser)
    output = parser.add_argument_group("dataset")
    output.add_argument("--output-folder", "--output", metavar="DIR", help="the dataset (default: IMAGES_labeled)")
    output.add_argument("--extension", help="take only files with this suffix, in any case (default: all common ones)")
    output.add_argument("--limit", type=int, metavar="N", help="label only the first N images")
    output.add_argument("--nms-settings", choices=["no_nms", "class_specific", "class_agnostic"])
    output.add_argument("--sahi", action="store_true", help="cut large images into overlapping tiles")
    output.add_argument("--record-confidence", action="store_true", help="write confidence-<name>.txt beside labels")
    output.add_argument("--plot", action="store_true", help="write review sheets (PNG)")
    output.add_argument("--overwrite", action="store_true", help="replace an earlier run's dataset")
    output.add_argument("--batch-size", type=int, metavar="N", help="images per call of the model")
    output.add_argument("--seed", type=int, help="of the split into train and valid")
    output.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show a progress bar")
    upload = parser.add_argument_group("Roboflow")
    upload.add_argument("--human-in-the-loop", action="store_true", help="upload the dataset afterwards")
    upload.add_argument("--roboflow-project", metavar="NAME")
    upload.add_argument("--roboflow-tags", nargs="+", metavar="TAG")
    parser.set_defaults(run=_label, after_stop=" The same command goes on where this one was.")


def _add_predict(commands: Any) -> None:
    parser = commands.add_parser("predict", help="show what is found in one or a few images")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="paths or URLs")
    _add_model_flags(parser)
    parser.add_argument("--output", type=Path, metavar="PNG", help="the overlay; of several images, a sheet")
    parser.set_defaults(run=_predict, after_stop="")


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser("demo", help="label the bundled example images; needs no weights and no GPU")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where to write (default: demo_output)")
    _add_verbosity(parser)
    parser.set_defaults(run=_demo, after_stop="")


def _add_download(commands: Any) -> None:
    from autodistill_sam3.download import FORMATS, NAMES

    parser = commands.add_parser("download", help="fetch checkpoints, or Meta's code, into models/")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument(
        "--format", dest="file_format", choices=FORMATS, help="of sam3: transformers, or Meta's sam3.pt"
    )
    parser.add_argument("--output", metavar="DIR", default="models", help="the models root (default: models)")
    parser.add_argument("--revision", metavar="R", help="a branch, tag or commit (default: main; of the code, pinned)")
    parser.add_argument(
        "--token-to-endpoint", action="store_true", help="send the token also to another host named by HF_ENDPOINT"
    )
    _add_verbosity(parser)
    parser.set_defaults(run=_download, after_stop=" The same command goes on where this one was.")


def _add_convert(commands: Any) -> None:
    from autodistill_sam3.convert import FORMATS

    parser = commands.add_parser("convert", help="write a SAM 3 checkpoint in another layout")
    parser.add_argument(
        "--input", required=True, metavar="F", help="a checkpoint; for tensorrt a folder of ONNX graphs"
    )
    parser.add_argument("--format", dest="file_format", required=True, choices=FORMATS)
    parser.add_argument("--output", metavar="DIR", help="a new folder; tensorrt needs none")
    parser.add_argument("--bpe-path", metavar="FILE", help="the vocabulary, if it is not with the checkpoint")
    _add_verbosity(parser)
    parser.set_defaults(run=_convert, after_stop=" Nothing was written.")


def _add_doctor(commands: Any) -> None:
    parser = commands.add_parser("doctor", help="what a run would use, whether it works, and what to do if not")
    _add_checkpoint_flags(parser.add_argument_group("model"))
    parser.add_argument("--output", type=Path, metavar="DIR", help="where a dataset would go, for its free space")
    parser.add_argument("--self-test", action="store_true", help="label a scene, and run the checkpoints on an image")
    _add_verbosity(parser)
    parser.set_defaults(run=_doctor, after_stop="")


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group("model")
    model.add_argument(
        "--class", dest="classes", action="append", required=True, metavar="PROMPT[=CLASS]",
        help='what to look for and the class it becomes, such as "milk bottle=bottle"; repeat for more',
    )  # fmt: skip
    _add_checkpoint_flags(model)
    model.add_argument("--confidence", type=float, help="for what text, or text and box together, found")
    model.add_argument("--box-confidence", type=float, help="for what boxes alone found")
    model.add_argument(
        "--threshold", dest="thresholds", action="append", metavar="CLASS=VALUE", help="both of these, for one class"
    )
    model.add_argument("--presence-gate", type=float, help="ask Florence-2 only for prompts that SAM 3 finds present")
    _add_verbosity(parser)


def _add_checkpoint_flags(model: argparse._ArgumentGroup) -> None:
    model.add_argument(
        "--checkpoint", help='"shapes", a SAM 3 folder or file, or a models root (default: models/ and caches)'
    )
    model.add_argument("--bpe-path", metavar="FILE", help="the vocabulary, if it is not with the checkpoint")
    model.add_argument("--backend", choices=["transformers", "sam3"], help="sam3: Meta's own code and files")
    model.add_argument("--florence2-checkpoint", metavar="DIR", help="a Florence-2 folder, if it lies elsewhere")
    model.add_argument("--prompting", choices=["text", "boxes", "both"])
    model.add_argument("--device", help='such as "cuda:1" or "cpu" (default: the best there is)')
    model.add_argument("--precision", choices=["auto", "bf16", "fp16", "fp32"])


def _add_verbosity(parser: argparse.ArgumentParser) -> None:
    volume = parser.add_mutually_exclusive_group()
    volume.add_argument("--quiet", action="store_true", help="errors only, no progress bar")
    volume.add_argument("--verbose", action="store_true", help="say which files are used")


_CHECKPOINT_KEYWORDS = (
    "checkpoint", "bpe_path", "florence2_checkpoint", "backend", "prompting", "device", "precision",
)  # fmt: skip
_MODEL_KEYWORDS = (*_CHECKPOINT_KEYWORDS, "confidence", "box_confidence", "presence_gate")
_DOCTOR_KEYWORDS = (*_CHECKPOINT_KEYWORDS, "output", "self_test")
_LABEL_KEYWORDS = (
    "extension", "output_folder", "human_in_the_loop", "roboflow_project", "roboflow_tags", "sahi",
    "record_confidence", "nms_settings", "limit", "plot", "overwrite", "batch_size", "seed", "progress",
)  # fmt: skip


def _label(options: argparse.Namespace) -> None:
    from autodistill_sam3.labeling import default_output

    if options.quiet:
        options.progress = False
    model = _build_model(options)
    dataset = model.label(options.input_folder, **_given(options, _LABEL_KEYWORDS))
    folder = options.output_folder or default_output(Path(options.input_folder))
    _say(options, f"{len(dataset)} images in {folder}")


def _predict(options: argparse.Namespace) -> None:
    from autodistill_sam3.images import load_image
    from autodistill_sam3.labeling.review import draw_detections, save_png

    if options.output is not None and options.output.is_dir():
        raise SettingError(f"Expected --output to be a PNG file, received a folder: {options.output}")
    model = _build_model(options)
    found = model.predict_batch(options.images)
    for source, detections in zip(options.images, found, strict=True):
        print(f"{source}: {len(detections)} found")
        for line in _describe(detections):
            print(f"  {line}")
    if options.output is None:
        return
    if len(found) == 1:
        save_png(draw_detections(load_image(options.images[0]), found[0]), options.output)
    else:
        _save_sheet(options.images, found, options.output)
    _say(options, f"overlay: {options.output}")


def _demo(options: argparse.Namespace) -> None:
    from autodistill_sam3.demo import DEMO_OUTPUT, run_demo
    from autodistill_sam3.evaluation import format_table

    result = run_demo(options.output or Path(DEMO_OUTPUT), progress=not options.quiet)
    print(f"\n{result.images} images in {result.seconds:.1f} s, compared with what was drawn:\n")
    print(format_table(result.scores))
    print(f"\ndataset       {result.dataset}")
    for sheet in result.sheets:
        print(f"review sheet  {sheet}")
    print(f"ground truth  {result.truth}")


def _doctor(options: argparse.Namespace) -> int:
    from autodistill_sam3.doctor import diagnose, format_report

    report = diagnose(**_given(options, _DOCTOR_KEYWORDS))
    print(format_report(report))
    return 0 if report.can_label else 1


def _download(options: argparse.Namespace) -> None:
    from autodistill_sam3.download import download

    place = download(
        options.name,
        output=options.output,
        revision=options.revision,
        file_format=options.file_format,
        token_to_endpoint=options.token_to_endpoint,
        progress=not options.quiet,
    )
    _say(options, str(place))


def _convert(options: argparse.Namespace) -> None:
    from autodistill_sam3.convert import convert

    for line in convert(options.input, options.file_format, options.output, bpe_path=options.bpe_path):
        _say(options, line)


def _build_model(options: argparse.Namespace) -> GroundedSAM3:
    from autodistill_sam3.base_models import GroundedSAM3

    thresholds = dict(_parse_threshold(text) for text in options.thresholds or ())
    return GroundedSAM3(_ontology(options.classes), thresholds=thresholds, **_given(options, _MODEL_KEYWORDS))


def _ontology(classes: Sequence[str]) -> PromptPairs:
    splits = [text.rpartition("=") if "=" in text else (text, "", text) for text in classes]
    return PromptPairs(tuple((prompt.strip(), name.strip()) for prompt, _, name in splits))


def _parse_threshold(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        return name, float(value)
    except ValueError:
        raise SettingError(f"Expected --threshold CLASS=VALUE such as bottle=0.4, received {text!r}") from None


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The flags that were used; the others keep the default that the package has for them."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _describe(detections: sv.Detections) -> list[str]:
    names, sources = detections.data.get("class_name", ()), detections.data.get("source", ())
    confidence = detections.confidence if detections.confidence is not None else ()
    return [
        f"{name:<20} {value:.3f}  {source:<5}  " + " ".join(f"{edge:.0f}" for edge in xyxy)
        for name, value, source, xyxy in zip(names, confidence, sources, detections.xyxy, strict=True)
    ]


def _save_sheet(sources: Sequence[str], found: Sequence[sv.Detections], path: Path) -> None:
    from autodistill_sam3.images import load_image
    from autodistill_sam3.labeling.review import draw_sheet, save_png

    pairs = zip(sources, found, strict=True)
    save_png(draw_sheet((load_image(source), detections, Path(source).name) for source, detections in pairs), path)


def _say(options: argparse.Namespace, text: str) -> None:
    if not options.quiet:
        print(text)
