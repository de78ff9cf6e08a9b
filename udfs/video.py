"""Reading clips: what a clip is made of, and the frames of its windows in one pass of decoding.

Frame numbers count clean frames in presentation order (see `video_decode`), the same in all functions.
"""

from udfs.video_probe import VideoInfo, probe, survey
from udfs.video_reader import FrameReader, WindowRange, read_windows
from udfs.video_source import Limits, Source
from udfs.video_windows import Change, Renderer, Resizer, Transform, WindowFrames

__all__ = [
    "Change",
    "FrameReader",
    "Limits",
    "Renderer",
    "Resizer",
    "Source",
    "Transform",
    "VideoInfo",
    "WindowFrames",
    "WindowRange",
    "probe",
    "read_windows",
    "survey",
]
