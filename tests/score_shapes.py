"""Score the whole pipeline on held-out scenes of the shapes world: `python tests/score_shapes.py 300`.

Scenes with an object that is hardly visible are left out, since whether it should be found is a matter of opinion.
"""

from __future__ import annotations

import sys

from scenes import held_out_scenes
from test_quality import score


def main() -> None:
    scenes = held_out_scenes(int(sys.argv[1]))
    print("prompting   F1  precision  recall  mask IoU")
    for prompting in ("text", "boxes", "both"):
        result = score(prompting, scenes=scenes)
        values = f"{result.f1:.3f}      {result.precision:.3f}   {result.recall:.3f}     {result.mean_iou:.3f}"
        print(f"{prompting:<9} {values}")


if __name__ == "__main__":
    main()
