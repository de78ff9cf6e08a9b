"""NeMo Curator's files: scripts that read its output find the same names and keys in ours."""

import io
import json
from pathlib import Path
from typing import Any

import pytest

import captionlake
from udfs.curator import clip_file, meta_document, meta_file, preview_file, read_meta
from udfs.storage import file_uri
from udfs.writing import write_file

WINDOW = {
    "window_index": 0,
    "start_frame": 0,
    "end_frame": 255,
    "frame_rate": 25.0,
    "width": 640,
    "height": 480,
    "video_codec": "h264",
    "caption": {"qwen": "A cat."},
    "enhanced_caption": {"qwen_lm": "A black cat."},
    "window_error": None,
    "caption_error": None,
    "caption_status": "success",
    "enhanced_error": None,
    "enhanced_status": "success",
    "preview_error": None,
    "preview_status": "success",
}
CLIP = {
    "clip_id": "8f1c",
    "source_video": "file:///videos/a.mp4",
    "span_start_s": None,
    "span_end_s": None,
    "clip_uri": "file:///clips/a.mp4",
    "num_bytes": 1234,
}


def written(clip: dict[str, Any], **more: Any) -> dict[str, Any]:
    given = {"output_path": "out", "with_clip": False, **more}
    document: dict[str, Any] = json.loads(meta_document(clip, **given))
    return document


def test_the_folders_are_where_clip_writer_stage_has_them() -> None:
    for root in ("s3://bucket/out", "s3://bucket/out/"):
        assert captionlake.get_output_path_previews(root) == "s3://bucket/out/previews"
        assert captionlake.get_output_path_clips(root) == "s3://bucket/out/clips"
        assert captionlake.get_output_path_clips(root, filtered=True) == "s3://bucket/out/filtered_clips"
        assert captionlake.get_output_path_metas(root, "v0") == "s3://bucket/out/metas/v0"
    assert preview_file("out", "8f1c", start_frame=0, end_frame=255) == "out/previews/8f1c/0_255.webp"
    assert meta_file("out", "8f1c") == "out/metas/v0/8f1c.json"
    assert clip_file("out", "8f1c") == "out/clips/8f1c.mp4"


def test_a_clip_s_metadata_has_the_original_s_keys() -> None:
    # Arrow gives maps as lists of pairs.
    pairs = WINDOW | {"caption": [("qwen", "A cat.")]}
    second = pairs | {"window_index": 1, "start_frame": 256, "end_frame": 299, "enhanced_caption": None}
    assert written(CLIP | {"windows": [second, WINDOW]}) == {
        "span_uuid": "8f1c",
        "source_video": "file:///videos/a.mp4",
        "duration_span": [0.0, 12.0],
        "width_source": 640,
        "height_source": 480,
        "framerate_source": 25.0,
        "clip_location": "file:///clips/a.mp4",
        "width": 640,
        "height": 480,
        "framerate": 25.0,
        "num_frames": 300,
        "video_codec": "h264",
        "num_bytes": 1234,
        "windows": [
            {
                "start_frame": 0,
                "end_frame": 255,
                "qwen_caption": "A cat.",
                "qwen_lm_enhanced_caption": "A black cat.",
            },
            {"start_frame": 256, "end_frame": 299, "qwen_caption": "A cat."},
        ],
        "valid": True,
    }


def test_a_clip_without_a_window_says_why_and_is_not_valid() -> None:
    nothing = dict.fromkeys(WINDOW) | {"window_error": "not a video", "caption_error": "not a video"}
    document = written(CLIP | {"windows": [nothing | {"caption_status": "skipped"}]})
    assert (document["valid"], document["windows"], document["errors"]) == (False, [], ["not a video"])
    failed = WINDOW | {"caption": None, "caption_status": "error", "caption_error": "too long"}
    assert written(CLIP | {"windows": [failed]})["errors"] == ["too long"]


def test_spans_and_places_are_kept_and_read_back() -> None:
    clip = CLIP | {"span_start_s": 2.5, "span_end_s": 7.0, "windows": [WINDOW]}
    assert written(clip)["duration_span"] == [2.5, 7.0]
    document = meta_document(clip, output_path="out", with_clip=True)
    read = read_meta(document)
    assert (read.clip_id, read.source_video) == ("8f1c", "file:///videos/a.mp4")
    assert (read.span_start_s, read.span_end_s, read.location) == (2.5, 7.0, "out/clips/8f1c.mp4")


@pytest.mark.parametrize("text", [b"", b"[]", b'{"span_uuid": 3}', b"{", b"\xff"])
def test_what_is_no_metadata_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        read_meta(text)


@pytest.mark.parametrize("clip_id", ["../../evil", "..", ".", "a/b", "s3://x/y.mp4"])
def test_an_id_from_a_table_names_no_file_elsewhere(clip_id: str, tmp_path: Path) -> None:
    root = tmp_path / "out"
    for name in (
        meta_file(str(root), clip_id),
        clip_file(str(root), clip_id),
        preview_file(str(root), clip_id, start_frame=0, end_frame=9),
    ):
        write_file(name, io.BytesIO(b"x"))
    found = sorted(str(path.resolve().relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert [path.split("/")[0] for path in found] == ["clips", "metas", "previews"]
    assert [len(Path(path).parts) for path in found] == [2, 3, 3]
    assert list(tmp_path.iterdir()) == [root]


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError("cut")

    place = file_uri(tmp_path / "a b" / "c.webp")
    write_file(place, io.BytesIO(b"one"))
    with pytest.raises(OSError, match="cut"):
        write_file(place, Broken())
    assert (tmp_path / "a b" / "c.webp").read_bytes() == b"one"
    write_file(place, io.BytesIO(b"two"))
    assert [path.read_bytes() for path in (tmp_path / "a b").iterdir()] == [b"two"]
