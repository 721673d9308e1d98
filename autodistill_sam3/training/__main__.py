"""`python -m autodistill_sam3.training fit|evaluate|evaluate-tracks`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from autodistill_sam3.training import validation
from autodistill_sam3.training.box_decoder import BoxStage
from autodistill_sam3.training.checkpoints import (
    load_florence2,
    load_sam3,
    new_florence2,
    new_sam3,
    save_florence2,
    save_sam3,
    with_memory,
)
from autodistill_sam3.training.configs import RECIPES, DetectorWeights, Recipe
from autodistill_sam3.training.detector import DetectorStage
from autodistill_sam3.training.florence2 import Florence2Stage
from autodistill_sam3.training.loop import Settings, fit
from autodistill_sam3.training.tracker import TrackerStage
from autodistill_sam3.training.tracking import quick_track_scores


def main(arguments: list[str] | None = None) -> int:
    """Run a command; see `--help`."""
    options = _parser().parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    commands = {"fit": _fit, "evaluate": _evaluate, "evaluate-tracks": _evaluate_tracks}
    commands[options.command](options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autodistill_sam3.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("fit", help="train one stage, going on where an earlier run in --output stopped")
    train.add_argument("stage", choices=sorted(RECIPES))
    train.add_argument("--output", type=Path, required=True, help="folder for the checkpoint, the state and the curve")
    train.add_argument("--init", type=Path, help="checkpoint folder to start from; `boxes` and `tracker` need one")
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=0, help="processes that plan scenes ahead")
    train.add_argument("--evaluate-every", type=int, default=1000)
    train.add_argument("--evaluate-scenes", type=int, default=96)
    train.add_argument("--evaluate-clips", type=int, default=12)
    train.add_argument("--log-every", type=int, default=50)
    train.add_argument("--compile", action="store_true", help="fuse the drawing of scenes, for faster steps")
    for name in ("steps", "scenes", "prompts", "warm_up", "clips"):
        train.add_argument(f"--{name.replace('_', '-')}", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--positive-weight", type=float, default=DetectorWeights.positive)
    score = commands.add_parser("evaluate", help="measure a pair of checkpoints through the pipeline; prints a table")
    score.add_argument("folder", help="a folder that holds sam3/ and florence2/, or shapes for the bundled ones")
    score.add_argument("--scenes", type=int, default=500, help="held-out scenes, four prompts each")
    score.add_argument("--hiding", type=float, default=0.0, help="share of objects laid onto an earlier one")
    score.add_argument("--pictures", type=Path, metavar="FOLDER", help="draw best, typical and worst scenes into it")
    score.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    tracks = commands.add_parser("evaluate-tracks", help="measure a checkpoint on held-out clips; prints a table")
    tracks.add_argument("folder", help="a folder that holds sam3/, or shapes for the bundled one")
    tracks.add_argument("--clips", type=int, default=12, help="of 60 frames, each with an object hidden for 10")
    tracks.add_argument("--device", default="cpu")
    train.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    score.add_argument("--device", default="cpu")
    return parser


def _recipe(options: argparse.Namespace) -> Recipe:
    names = ("steps", "scenes", "prompts", "warm_up", "clips", "learning_rate")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(RECIPES[options.stage], **given)


def _fit(options: argparse.Namespace) -> None:
    torch.manual_seed(options.seed)
    recipe = _recipe(options)
    settings = Settings(
        output=options.output,
        device=options.device,
        seed=options.seed,
        workers=options.workers,
        evaluate_every=options.evaluate_every,
        log_every=options.log_every,
        compile=options.compile,
    )
    folder = options.output / ("florence2" if options.stage == "florence2" else "sam3")
    scenes = options.evaluate_scenes
    if options.stage == "florence2":
        florence, tokenizer = load_florence2(options.init) if options.init else new_florence2(options.seed)
        fit(
            Florence2Stage(florence, tokenizer),
            recipe,
            settings,
            evaluate=lambda: validation.quick_grounding_scores(florence, tokenizer, scenes),
            save=lambda: save_florence2(florence, tokenizer, folder),
        )
        return
    if options.stage in ("boxes", "tracker") and options.init is None:
        sys.exit(f"fit {options.stage} needs --init FOLDER: it builds on a trained detector.")
    model, tokenizer = load_sam3(options.init) if options.init else new_sam3(options.seed)
    if options.stage == "boxes":
        fit(
            BoxStage(model),
            recipe,
            settings,
            evaluate=lambda: validation.box_results(model, validation.held_out_plans(scenes)),
            save=lambda: save_sam3(model, tokenizer, folder),
        )
        return
    if options.stage == "tracker":
        model = with_memory(model, tokenizer)
        fit(
            TrackerStage(model),
            recipe,
            settings,
            evaluate=lambda: (
                validation.box_results(model, validation.held_out_plans(scenes))
                | validation.point_results(model, validation.held_out_plans(scenes))
                | quick_track_scores(model, options.evaluate_clips)
            ),
            save=lambda: save_sam3(model, tokenizer, folder),
        )
        return
    fit(
        DetectorStage(model, tokenizer, DetectorWeights(positive=options.positive_weight)),
        recipe,
        settings,
        evaluate=lambda: validation.quick_text_scores(model, tokenizer, scenes),
        save=lambda: save_sam3(model, tokenizer, folder),
    )


def _evaluate(options: argparse.Namespace) -> None:
    """Measure the table of models/shapes/README.md, and draw the pictures of docs/shapes.md where asked to."""
    # They need the whole package; training does not.
    from autodistill_sam3.training.pictures import draw_pictures
    from autodistill_sam3.training.table import measure, to_markdown

    measurement = measure(options.folder, options.scenes, options.device, hiding=options.hiding)
    # First what took longest to find out.
    sys.stdout.write(to_markdown(measurement.numbers))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(measurement.numbers.as_dict(), indent=1) + "\n")
    if options.pictures:
        draw_pictures(measurement, options.pictures)


def _evaluate_tracks(options: argparse.Namespace) -> None:
    """Measure the table of clips in models/shapes/README.md."""
    from autodistill_sam3.training.video_table import measure_tracks, tracks_to_markdown

    sys.stdout.write(tracks_to_markdown(measure_tracks(options.folder, options.clips, options.device)))


if __name__ == "__main__":
    sys.exit(main())
