"""Add up the kernels of a batch: `python examples/profile_kernels.py benchmark`, after `autodistill-sam3 benchmark`.

What is left of an image's time when a GPU never waits. Weights, pictures and confidences are those of the benchmark in
that folder. Prints milliseconds an image by kind of kernel, and the longest kernels; on a CPU, operations instead.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
from torch.profiler import ProfilerActivity, profile

from autodistill_sam3 import SegmentAnything3
from autodistill_sam3.benchmark.settings import PROMPTS
from autodistill_sam3.labeling import LabelingPlan
from autodistill_sam3.ontology import PromptPairs

KINDS = {
    "fused element by element": r"^triton_(poi|per|red)_",
    "attention": r"sdpa|flash|fmha|attention_kernel|scaled_dot_product|flex_attention",
    "convolutions": r"fprop|dgrad|conv",
    "products of matrices": r"nvjet|gemm|cutlass|addmm|::mm|bmm|linear",
    "copies": r"memcpy|memset|copy_",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", type=Path, help="the folder with benchmark.json")
    parser.add_argument("--longest", type=int, default=12, metavar="N", help="kernels that are named (default: 12)")
    options = parser.parse_args()
    for line in report(options.benchmark, options.longest):
        print(line, flush=True)


def report(folder: Path, longest: int) -> Iterator[str]:
    content = json.loads((folder / "benchmark.json").read_text(encoding="utf-8"))
    on_gpu = content["device_type"] == "cuda"
    batch = LabelingPlan.batch_size if on_gpu else 1
    pictures = [cv2.imread(str(path)) for path in sorted((folder / "pictures").glob("*.jpg"))[:batch]]
    model = SegmentAnything3(
        PromptPairs((("thing", "thing"),)),
        checkpoint=content["settings"]["checkpoint"],
        bpe_path=content["settings"]["bpe_path"],
        compile=on_gpu,
    )
    for classes in content["settings"]["classes"]:
        model.set_ontology(PromptPairs(tuple((prompt, prompt) for prompt in PROMPTS[:classes])))
        model.thresholds = type(model.thresholds)(confidence=content["calibration"]["confidence"][str(classes)])
        kernels = Counter({name: ms / len(pictures) for name, ms in milliseconds(model, pictures, on_gpu).items()})
        yield f"{classes} classes, batch {len(pictures)}: {kernels.total():.2f} ms an image"
        yield from (f"  {ms:8.2f} {kind}" for kind, ms in by_kind(kernels).most_common())
        yield from (f"    {ms:8.3f} {name[:100]}" for name, ms in kernels.most_common(longest))


def milliseconds(model: SegmentAnything3, pictures: list[Any], on_gpu: bool) -> dict[str, float]:
    """Name of a kernel -> how long it takes for all pictures."""
    # Compiled the first time, and tuned the second.
    for _ in range(2):
        model.predict_batch(pictures)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU], acc_events=True) as recorded:
        model.predict_batch(pictures)
    attribute = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    return {event.key: getattr(event, attribute) / 1000 for event in recorded.key_averages()}


def by_kind(kernels: Counter[str]) -> Counter[str]:
    kinds: Counter[str] = Counter()
    for name, ms in kernels.items():
        found = (kind for kind, pattern in KINDS.items() if re.search(pattern, name, re.IGNORECASE))
        kinds[next(found, "others")] += ms
    return kinds


if __name__ == "__main__":
    main()
