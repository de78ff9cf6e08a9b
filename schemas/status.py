"""The statuses of rows; free of Spark so that pure code can use them."""

from enum import StrEnum


class WindowStatus(StrEnum):
    """Outcome of cutting a clip into windows."""

    SUCCESS = "success"
    PARTIAL = "partial"
    """The clip breaks in the middle; the window lies in its decodable frames."""
    ERROR = "error"
    SKIPPED = "skipped"
    """The clip is fine but has too few frames for a window."""


class CaptionStatus(StrEnum):
    """Outcome of captioning a window; also of enhancing a caption."""

    SUCCESS = "success"
    TRUNCATED = "truncated"
    """The answer reached the longest allowed length."""
    ERROR = "error"
    SKIPPED = "skipped"
    """There was nothing to work on: no window, or no caption."""


class PreviewStatus(StrEnum):
    """Outcome of making the preview of a window; also of making its mp4."""

    SUCCESS = "success"
    ERROR = "error"
    SKIPPED = "skipped"
    """There was no window to show."""
