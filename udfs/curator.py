"""The files of NeMo Curator's `ClipWriterStage`: where they lie, and what is in them.

OUTPUT/previews/{clip}/{start_frame}_{end_frame}.webp
OUTPUT/metas/v0/{clip}.json
OUTPUT/clips/{clip}.mp4
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

META_VERSION = "v0"

Row = Mapping[str, Any]


def get_output_path_clips(output_path: str, *, filtered: bool = False) -> str:
    """The folder of clips, or of those that a filter took out."""
    return _below(output_path, "filtered_clips" if filtered else "clips")


def get_output_path_previews(output_path: str) -> str:
    """The folder of previews."""
    return _below(output_path, "previews")


def get_output_path_metas(output_path: str, version: str = META_VERSION) -> str:
    """The folder of the clips' metadata."""
    return _below(output_path, f"metas/{version}")


def preview_file(output_path: str, clip_id: str, *, start_frame: int, end_frame: int) -> str:
    """Where the preview of a window lies; `end_frame` is inclusive."""
    return f"{get_output_path_previews(output_path)}/{_name(clip_id)}/{start_frame}_{end_frame}.webp"


def meta_file(output_path: str, clip_id: str) -> str:
    """Where the metadata of a clip lies."""
    return f"{get_output_path_metas(output_path)}/{_name(clip_id)}.json"


def clip_file(output_path: str, clip_id: str) -> str:
    """Where a clip lies."""
    return f"{get_output_path_clips(output_path)}/{_name(clip_id)}.mp4"


def meta_document(clip: Row, *, output_path: str, with_clip: bool) -> bytes:
    """The metadata of a clip, as JSON.

    Args:
        clip: `clip_id`, `source_video`, `span_start_s`, `span_end_s`, `clip_uri`, `num_bytes`, and
            `windows`: rows of the view `window_captions`. A clip without a window has one row
            there that says why.
        output_path: the folder of the layout.
        with_clip: the clip itself lies in the layout, too.

    Returns:
        UTF-8. Of the source video nothing is known but the clip, so the size and rate of the one are
        those of the other. What is not known is null.
    """
    windows = [window for window in clip["windows"] if window["window_index"] is not None]
    windows.sort(key=lambda window: int(window["window_index"]))
    first: Row = windows[0] if windows else {}
    num_frames = windows[-1]["end_frame"] + 1 if windows else None
    rate = first.get("frame_rate")
    where = clip_file(output_path, clip["clip_id"])
    document: dict[str, Any] = {
        "span_uuid": clip["clip_id"],
        "source_video": clip["source_video"],
        "duration_span": _span(clip, num_frames / rate if num_frames and rate else 0.0),
        "width_source": first.get("width"),
        "height_source": first.get("height"),
        "framerate_source": rate,
        "clip_location": where if with_clip or not clip["clip_uri"] else clip["clip_uri"],
        "width": first.get("width"),
        "height": first.get("height"),
        "framerate": rate,
        "num_frames": num_frames,
        "video_codec": first.get("video_codec"),
        "num_bytes": clip["num_bytes"],
    }
    if errors := _errors(clip["windows"]):
        document["errors"] = errors
    document["windows"] = [_window(window) for window in windows]
    document["valid"] = bool(windows)
    return json.dumps(document, indent=4, ensure_ascii=False).encode()


@dataclass(frozen=True)
class CuratorClip:
    """What the metadata of a clip says of it.

    Attributes:
        clip_id: the clip's id there, kept as it is.
        source_video: the video that it was cut from.
        span_start_s: where it begins in that video, in seconds.
        span_end_s: where it ends in that video, in seconds.
        location: where the clip lay when the metadata was written.
    """

    clip_id: str
    source_video: str | None
    span_start_s: float | None
    span_end_s: float | None
    location: str | None


def read_meta(document: bytes) -> CuratorClip:
    """Reads the metadata of a clip.

    Raises:
        ValueError: it is no metadata of a clip.
    """
    meta = json.loads(document)
    if not isinstance(meta, dict) or not isinstance(meta.get("span_uuid"), str) or not meta["span_uuid"]:
        raise ValueError("it has no span_uuid")
    start, end = _two_numbers(meta.get("duration_span"))
    return CuratorClip(
        meta["span_uuid"], _text(meta, "source_video"), start, end, _text(meta, "clip_location")
    )


def _below(output_path: str, extra: str) -> str:
    return f"{output_path.rstrip('/')}/{extra}"


def _name(clip_id: str) -> str:
    """An id as one part of a path, whatever a table of clips holds: ids are UUIDs only by custom."""
    name = quote(clip_id, safe=" ")
    return name.replace(".", "%2E") if set(name) <= {"."} else name


def _span(clip: Row, duration_s: float) -> list[float]:
    start = clip["span_start_s"] or 0.0
    return [start, clip["span_end_s"] if clip["span_end_s"] is not None else start + duration_s]


def _errors(windows: list[Row]) -> list[str]:
    """What went wrong with a clip, each thing once."""
    names = ("window_error", "caption_error", "enhanced_error", "preview_error")
    is_skipped = {name: name.replace("_error", "_status") for name in names}
    found = [
        str(window[name])
        for window in windows
        for name in names
        if window[name] and (name == "window_error" or window[is_skipped[name]] != "skipped")
    ]
    return list(dict.fromkeys(found))


def _window(window: Row) -> dict[str, Any]:
    shown: dict[str, Any] = {"start_frame": window["start_frame"], "end_frame": window["end_frame"]}
    for column in ("caption", "enhanced_caption"):
        shown.update({f"{model}_{column}": text for model, text in dict(window[column] or {}).items()})
    return shown


def _two_numbers(span: Any) -> tuple[float | None, float | None]:
    is_span = isinstance(span, list) and len(span) == 2 and all(isinstance(at, int | float) for at in span)
    return (float(span[0]), float(span[1])) if is_span else (None, None)


def _text(meta: Mapping[str, Any], key: str) -> str | None:
    value = meta.get(key)
    return value if isinstance(value, str) and value else None
