"""Ids of clips and windows: the same input gives the same id, on every machine and in every run."""

import uuid

NAMESPACE = uuid.UUID("6b0f3a8e-7a44-5c0e-9d1b-2f6c1f0a9e57")
"""UUIDv5 namespace of Captionlake; changing it re-does all work."""


def clip_uuid(uri: str, *, span_start_s: float | None = None, span_end_s: float | None = None) -> str:
    """Id of a clip: UUIDv5 of its canonical URI and its span in whole microseconds.

    Example:
        >>> clip_uuid("file:///videos/a.mp4")
        'a8ee77ac-423d-5082-b50d-34d719ef2532'
    """
    span = [("" if at is None else str(round(at * 1_000_000))) for at in (span_start_s, span_end_s)]
    return str(uuid.uuid5(NAMESPACE, "clip\n" + "\n".join([uri, *span])))


def window_uuid(clip_id: str, content_id: str | None, *, start_frame: int, end_frame: int) -> str:
    """Id of a window: UUIDv5 of its clip with its content, first and last frame (inclusive).

    The content is part of it because changed bytes under an unchanged name are new work.
    """
    return str(uuid.uuid5(NAMESPACE, f"window\n{clip_id}\n{content_id or ''}\n{start_frame}\n{end_frame}"))


def no_window_uuid(clip_id: str, content_id: str | None, *, attempt: int) -> str:
    """Id of the row that says why a clip has no window; each attempt says so anew."""
    return str(uuid.uuid5(NAMESPACE, f"no window\n{clip_id}\n{content_id or ''}\n{attempt}"))
