"""The comparison of videos at full size, here with the narrow model, so that the script is known to run."""

from __future__ import annotations

import json

import pytest

from . import narrow, narrow_video, video_full_size

GRID = narrow.VIDEO_IMAGE_SIZE // 14


def shrink(config):
    """A converted config says nothing of the image's size, which no tensor has."""
    size = narrow.VIDEO_IMAGE_SIZE
    pyramid = [[GRID * 4] * 2, [GRID * 2] * 2, [GRID] * 2]
    config["low_res_mask_size"] = GRID * 4
    for half in ("detector_config", "tracker_config"):
        config[half]["image_size"] = size
        vision = config[half]["vision_config"]
        vision["backbone_feature_sizes"] = pyramid
        vision["backbone_config"] |= {"image_size": size, "global_attn_indexes": list(narrow.VIT_GLOBAL_LAYERS)}
    config["tracker_config"]["memory_attention_rope_feat_sizes"] = [GRID, GRID]
    config["tracker_config"]["prompt_encoder_config"]["image_size"] = size


@pytest.mark.slow
def test_comparison_with_the_narrow_model(tmp_path, monkeypatch):
    monkeypatch.setattr(video_full_size, "SPEEDS", ((1, 2), (2, 2)))
    monkeypatch.setattr(video_full_size, "COMPARED_OBJECTS", (2, 4))
    plan = video_full_size.Plan(frames=4, hw=(120, 200), size=narrow.VIDEO_IMAGE_SIZE)
    checkpoint, converted = tmp_path / "sam3.pt", tmp_path / "converted"
    narrow_video.write_narrow_video(checkpoint)
    bpe = narrow.clip_vocabulary()
    video_full_size.convert(checkpoint, "transformers", converted, bpe_path=bpe)
    engine = "autodistill_sam3.video.official_engine:OfficialVideoEngine"
    rows = video_full_size.Rows(tmp_path / "rows.jsonl")

    def measure():
        with narrow_video.narrowed_video():
            video_full_size.run(
                video_full_size.candidates(checkpoint, converted, bpe, "cpu", [engine], shrink),
                lambda: video_full_size.OfficialWay(checkpoint, bpe, "cpu", "fp32"),
                plan,
                rows,
            )

    measure()
    found = {row["key"]: row for row in rows.rows}
    assert len(found) == 6 + 3 * 2
    official = found["compare|Meta's predictor"]
    # Only pixels in fp16 set it apart from the reference.
    assert official["scores"] < 1e-2
    assert official["matched"] == official["expected"]
    # The first frame of a run is made again from the memory of it, at a resolution that is a sixteenth here.
    assert found["compare|OfficialVideoEngine"]["IoU first"] > 0.8
    assert found["compare|OfficialVideoEngine"]["IoU 3-5"] > 0.9
    with_token = found["compare|transformers' Sam3VideoModel with the token, fp32"]
    assert with_token["scores"] < 1e-5
    assert with_token["detected"] < 1e-4
    assert with_token["least IoU first"] > 0.999
    for key, row in found.items():
        if key.startswith("speed"):
            assert row["frames"] == plan.frames
            assert row["objects"] == 2
    page = video_full_size.report.markdown(rows.rows, "CPU")
    assert "| 2 | 2 |" in page
    print(page)
    # What is there is not measured again.
    again = video_full_size.Rows(tmp_path / "rows.jsonl")
    assert again.rows == rows.rows
    measure()
    assert len(rows.rows) == len(found)


def test_rows_end_and_go_on(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = video_full_size.Rows(path)

    def endless():
        while True:
            pass

    def fail():
        raise ValueError("broken")

    rows.measure("a", lambda: video_full_size.limited(0.05, endless))
    rows.measure("b", fail)
    rows.measure("c", lambda: {"fps": 1.0})
    assert "a: no time" in capsys.readouterr().out
    with path.open("a") as file:
        file.write('{"key": "d", "fp')
    rows = video_full_size.Rows(path)
    assert [row["key"] for row in rows.rows] == ["c"]
    rows.measure("c", fail)
    rows.measure("b", lambda: {"fps": 2.0})
    assert [json.loads(line)["fps"] for line in path.read_text().splitlines()] == [1.0, 2.0]
