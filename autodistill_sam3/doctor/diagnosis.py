"""All sections of the report, each on its own feet."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from autodistill_sam3.doctor.checkpoints import check_florence2, check_sam3
from autodistill_sam3.doctor.hardware import check_hardware
from autodistill_sam3.doctor.installation import check_installation
from autodistill_sam3.doctor.official import check_official
from autodistill_sam3.doctor.report import Finding, Report
from autodistill_sam3.doctor.self_test import check_results
from autodistill_sam3.doctor.settings import RunSettings, first_line
from autodistill_sam3.doctor.software import check_software
from autodistill_sam3.doctor.surroundings import check_surroundings

if TYPE_CHECKING:
    from autodistill_sam3.devices import Precision
    from autodistill_sam3.ontology import Prompting
    from autodistill_sam3.segmentation import Backend

Check = Callable[[RunSettings], Iterator[Finding]]


def diagnose(
    *,
    checkpoint: str | Path | None = None,
    bpe_path: str | Path | None = None,
    florence2_checkpoint: str | Path | None = None,
    backend: Backend = "transformers",
    prompting: Prompting = "both",
    device: str | None = None,
    precision: Precision = "auto",
    output: str | Path | None = None,
    self_test: bool = False,
) -> Report:
    """Look at everything that labelling with these settings would use.

    Nothing is downloaded, written or changed. Without `self_test`, Meta's code is not executed, and of weights only
    names and shapes are read. A section that cannot be examined says so and leaves the others alone.

    Args:
        checkpoint: As in `GroundedSAM3`, like the following up to `precision`.
        bpe_path: See there.
        florence2_checkpoint: See there.
        backend: See there.
        prompting: See there.
        device: See there.
        precision: See there.
        output: The folder that a run would write to.
        self_test: Also label a bundled scene with the bundled shapes checkpoints, look at every weight of the
            checkpoints that a run would use, and run one image through them.
    """
    run = RunSettings(
        checkpoint=checkpoint,
        bpe_path=bpe_path,
        florence2_checkpoint=florence2_checkpoint,
        backend=backend,
        prompting=prompting,
        device=device,
        precision=precision,
        output=Path(output) if output is not None else None,
    )
    # The section, what fills it, and whether labelling needs it.
    sections: list[tuple[str, Check, bool]] = [
        ("Software", check_software, True),
        ("Installation", check_installation, False),
        ("Device", check_hardware, True),
        ("SAM 3", check_sam3, True),
        ("Florence-2", check_florence2, run.with_boxes),
        ("Official code", check_official, run.official),
        ("Surroundings", check_surroundings, False),
    ]
    if self_test:
        sections.append(("Self-test", check_results, True))
    return Report(tuple(finding for section in sections for finding in _guarded(*section, run)))


def _guarded(section: str, check: Check, needed: bool, run: RunSettings) -> list[Finding]:
    """What a check finds, also up to an exception; a damaged installation raises nearly anything."""
    found: list[Finding] = []
    try:
        # What libraries warn of while they are looked at is not the report.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for finding in check(run):
                found.append(finding)  # noqa: PERF402  # what came before an exception stays
    # The faults that the doctor is called for are of any type.
    except Exception as error:
        found.append(
            Finding(
                section,
                "examination",
                f"stopped by {type(error).__name__}: {first_line(error)}",
                "problem" if needed else "warning",
                "Solve what is said above first. If nothing is, please report this with the whole output.",
            )
        )
    return found
