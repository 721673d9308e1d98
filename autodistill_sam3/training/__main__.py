"""`python -m autodistill_sam3.training fit|evaluate|sharpen`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import torch

from autodistill_sam3.training import evaluate as scoring
from autodistill_sam3.training.box_decoder import BoxStage
from autodistill_sam3.training.checkpoints import (
    load_florence2,
    load_sam3,
    new_florence2,
    new_sam3,
    save_florence2,
    save_sam3,
    typical_inputs,
)
from autodistill_sam3.training.configs import RECIPES, DetectorWeights, Recipe
from autodistill_sam3.training.detector import DetectorStage
from autodistill_sam3.training.florence2 import Florence2Stage, sharpen
from autodistill_sam3.training.initial import balance, restart_decoder
from autodistill_sam3.training.loop import Settings, fit


def main(arguments: list[str] | None = None) -> int:
    """Run a command; see `--help`."""
    options = _parser().parse_args(arguments)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    if options.command == "fit":
        _fit(options)
    elif options.command == "sharpen":
        _sharpen(options)
    else:
        _evaluate(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m autodistill_sam3.training", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train = commands.add_parser("fit", help="train one stage, going on where an earlier run in --output stopped")
    train.add_argument("stage", choices=sorted(RECIPES))
    train.add_argument("--output", type=Path, required=True, help="folder for the checkpoint, the state and the curve")
    train.add_argument("--init", type=Path, help="checkpoint folder to start from; `boxes` needs one")
    train.add_argument(
        "--restart-decoder",
        action="store_true",
        help="with --init, give the detector a fresh decoder on top of rescaled encoder features",
    )
    train.add_argument("--seed", type=int, default=0)
    train.add_argument("--workers", type=int, default=0, help="processes that plan scenes ahead")
    train.add_argument("--evaluate-every", type=int, default=1000)
    train.add_argument("--evaluate-scenes", type=int, default=96)
    train.add_argument("--log-every", type=int, default=50)
    for name in ("steps", "scenes", "prompts", "warm_up"):
        train.add_argument(f"--{name.replace('_', '-')}", type=int)
    train.add_argument("--learning-rate", type=float)
    train.add_argument("--positive-weight", type=float, default=DetectorWeights.positive)
    score = commands.add_parser("evaluate", help="score checkpoints on held-out scenes and print JSON")
    score.add_argument("folder", type=Path, help="holds sam3/ and florence2/")
    score.add_argument("--scenes", type=int, default=500)
    sharper = commands.add_parser("sharpen", help="raise a Florence-2 checkpoint's confidence, in place")
    sharper.add_argument("folder", type=Path)
    sharper.add_argument("--factor", type=float, default=3.0)
    for command in (train, score):
        command.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def _recipe(options: argparse.Namespace) -> Recipe:
    names = ("steps", "scenes", "prompts", "warm_up", "learning_rate")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(RECIPES[options.stage], **given)


def _fit(options: argparse.Namespace) -> None:
    recipe = _recipe(options)
    settings = Settings(
        output=options.output,
        device=options.device,
        seed=options.seed,
        workers=options.workers,
        evaluate_every=options.evaluate_every,
        log_every=options.log_every,
    )
    folder = options.output / ("florence2" if options.stage == "florence2" else "sam3")
    scenes = options.evaluate_scenes
    if options.stage == "florence2":
        florence, tokenizer = load_florence2(options.init) if options.init else new_florence2(options.seed)
        fit(
            Florence2Stage(florence, tokenizer),
            recipe,
            settings,
            evaluate=lambda: scoring.quick_grounding_scores(florence, tokenizer, scenes),
            save=lambda: save_florence2(florence, tokenizer, folder),
        )
        return
    if options.stage == "boxes" and options.init is None:
        sys.exit("fit boxes needs --init FOLDER: it builds on a trained detector.")
    model, tokenizer = load_sam3(options.init) if options.init else new_sam3(options.seed)
    if options.init and options.restart_decoder:
        balance(model, *typical_inputs(tokenizer))
        restart_decoder(model)
    if options.stage == "boxes":
        fit(
            BoxStage(model),
            recipe,
            settings,
            evaluate=lambda: scoring.box_results(model, scoring.held_out_plans(scenes)),
            save=lambda: save_sam3(model, tokenizer, folder),
        )
        return
    fit(
        DetectorStage(model, tokenizer, DetectorWeights(positive=options.positive_weight)),
        recipe,
        settings,
        evaluate=lambda: scoring.quick_text_scores(model, tokenizer, scenes),
        save=lambda: save_sam3(model, tokenizer, folder),
    )


def _sharpen(options: argparse.Namespace) -> None:
    model, tokenizer = load_florence2(options.folder)
    sharpen(model, options.factor)
    save_florence2(model, tokenizer, options.folder)


def _evaluate(options: argparse.Namespace) -> None:
    """Print everything that models/shapes/README.md tabulates."""
    device = torch.device(options.device)
    report: dict[str, object] = {"scenes": options.scenes}
    plans = scoring.held_out_plans(options.scenes)
    if (options.folder / "sam3").is_dir():
        model, tokenizer = load_sam3(options.folder / "sam3")
        torch.nn.Module.to(model, device).train(False)
        results = scoring.text_results(model, tokenizer, plans)
        unseen = scoring.text_results(
            model, tokenizer, scoring.held_out_plans(max(options.scenes // 5, 1), unseen_pairs=True)
        )
        report["text"] = {str(at): scoring.detection_scores(results, at) for at in scoring.THRESHOLDS}
        report["unseen_pairs"] = scoring.detection_scores(unseen, 0.5)
        report["boxes"] = scoring.box_results(model, plans)
    if (options.folder / "florence2").is_dir():
        florence, tokenizer = load_florence2(options.folder / "florence2")
        torch.nn.Module.to(florence, device).train(False)
        report["florence2"] = scoring.quick_grounding_scores(florence, tokenizer, options.scenes)
    sys.stdout.write(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
