"""One process of a benchmark: a task as JSON on the standard input, results as lines of JSON on the standard output."""

from __future__ import annotations

import json
import os
import sys

from autodistill_sam3.benchmark.settings import Settings, Work
from autodistill_sam3.benchmark.tasks import run_task


def main() -> int:
    """Do the task."""
    task = json.loads(sys.stdin.read())
    # Results have the standard output to themselves; what libraries print goes to the error output.
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    works = [Work(**work) for work in task["works"]]
    for name, result in run_task(task["task"], Settings.from_json(task["settings"]), works, task["started"]):
        print(json.dumps([name, result]), file=results, flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
