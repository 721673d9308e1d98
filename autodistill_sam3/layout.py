"""The names of the files in a labelled folder, for those who write and those who read it."""

from __future__ import annotations

DATA_YAML = "data.yaml"
JOURNAL = "journal.jsonl"
QUARANTINE = "quarantine.jsonl"
REPORT = "report.json"
RUN = "run.json"
TIMES = "times.json"
REVIEW = "review"
# Of a prepared dataset: what is known of its source's images, and what was left out.
MEASURED = "measured.jsonl"
DROPPED = "dropped.jsonl"
# What is not merged yet of a dataset that several workers label.
SHARDS = "shards"
# Of a folder of tracked clips: what is known of each, its tracks, its overlay, its chosen frames, and their dataset.
CLIPS = "clips"
TRACKS = "tracks"
OVERLAYS = "overlays"
FRAMES = "frames"
DATASET = "dataset"
# In each split's folder.
COCO = "_annotations.coco.json"
# In front of a label file's name.
CONFIDENCE_PREFIX = "confidence-"
