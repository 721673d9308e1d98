"""Label the bundled example images with the bundled shapes checkpoints and compare with what was drawn."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from autodistill_sam3.bundled import bundled_path
from autodistill_sam3.categories import Category, read_categories
from autodistill_sam3.errors import OutputFolderError
from autodistill_sam3.evaluation import ClassScore, evaluate_detections, load_truth
from autodistill_sam3.labeling import read_run
from autodistill_sam3.layout import REVIEW
from autodistill_sam3.weights import SHAPES

DEMO_OUTPUT = "demo_output"


@dataclass(frozen=True)
class DemoResult:
    """What the demo made.

    Attributes:
        images: How many images were labelled.
        seconds: Time for loading the models, labelling and drawing.
        dataset: The labelled folder.
        page: What to judge the labels by, HTML.
        sheets: Review sheets, PNG.
        truth: What was really drawn, COCO.
        scores: Per class and overall.
    """

    images: int
    seconds: float
    dataset: Path
    page: Path
    sheets: list[Path]
    truth: Path
    scores: list[ClassScore]


def run_demo(output: Path, *, progress: bool = True) -> DemoResult:
    """Run the demo on the CPU.

    Args:
        output: Where to write; an earlier demo there is replaced, anything else is refused.
        progress: Show a progress bar.

    Raises:
        OutputFolderError: The folder holds something other than an earlier demo.
    """
    from autodistill_sam3.base_models import GroundedSAM3

    started = time.perf_counter()
    shapes, truth_file = read_categories()[SHAPES], bundled_path("examples/ground_truth.coco.json")
    _check_output(output, shapes)
    model = GroundedSAM3(shapes.ontology, **shapes.settings, device="cpu")
    dataset = model.label(shapes.images, output_folder=output, plot=True, overwrite=True, progress=progress)
    classes, truth = load_truth(truth_file, truth_file.parent)
    predicted = {Path(path).stem: dataset.annotations[path] for path in dataset.image_paths}
    scores = evaluate_detections(predicted, {Path(name).stem: objects for name, objects in truth.items()}, classes)
    return DemoResult(
        images=len(dataset),
        seconds=time.perf_counter() - started,
        dataset=output,
        page=output / REVIEW / "index.html",
        sheets=sorted((output / REVIEW).glob("*.png")),
        truth=truth_file,
        scores=scores,
    )


def _check_output(output: Path, shapes: Category) -> None:
    """Only a dataset of the example images and the demo's own prompts is an earlier demo."""
    run = read_run(output)
    if run is None:
        return
    settings = run["settings"]
    prompts = [prompt for prompt, _ in settings.get("prompts", ())]
    is_demo = settings.get("source") == str(shapes.images.resolve()) and prompts == [*shapes.prompts]
    if not is_demo:
        raise OutputFolderError(
            f"Expected a new folder or an earlier demo, received another dataset: {output}. "
            "Choose another folder, or remove that one yourself."
        )
