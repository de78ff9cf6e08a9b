"""What a clip is made of, from its frames or from its packets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from conf.errors import ClipError
from udfs.video_decode import CleanFrames, TimedFrame, stream_rate
from udfs.video_packets import PacketIndex, index_packets
from udfs.video_smart import InexactError, can_skip, wanted_frames
from udfs.video_source import Limits, Source, Stopwatch, open_video, skip_smoothing
from udfs.video_windows import Shape


@dataclass(frozen=True, eq=False)
class VideoInfo:
    """What a clip is made of.

    Attributes:
        times_s: float64 (num_frames,), real presentation time of every clean frame in seconds.
        frame_rate: the stream's average rate, else frames / duration.
        width: as displayed, in pixels.
        height: as displayed, in pixels.
        codec: ffmpeg's name of the codec, such as `h264`.
        rotation_deg: counterclockwise turn that displaying applies: 0, 90, 180 or 270.
        broken: where and why the clip breaks; None for a sound one. Only clean frames are counted.
    """

    times_s: npt.NDArray[np.float64]
    frame_rate: float
    width: int
    height: int
    codec: str
    rotation_deg: int
    broken: str | None

    @property
    def num_frames(self) -> int:
        """Number of clean frames."""
        return len(self.times_s)


def probe(source: Source, limits: Limits | None = None) -> VideoInfo:
    """Decodes a clip from end to end and tells what it is made of.

    Every frame is decoded, but for the smoothing of its blocks: damage shows in how a frame is coded, and
    not in its pixels.

    Args:
        source: bytes, local path or seekable binary file.
        limits: what the clip may cost.

    Raises:
        ClipError: the clip is no video in an allowed container, has no decodable frame, or is beyond the
            limits.
    """
    limits = limits or Limits()
    watch = Stopwatch(limits.max_seconds)
    with open_video(source, limits, watch) as (container, stream):
        skip_smoothing(stream)
        return describe(CleanFrames(container, stream, watch), stream, limits)


def survey(source: Source, limits: Limits | None = None) -> VideoInfo:
    """Tells what a clip is made of by its packets, where they can be trusted, else as `probe` does.

    The packets are trusted for H.264, HEVC, VP8, VP9 and AV1 in mp4/mov, mkv/webm and flv, which have true
    times and say how long a picture is. They are not, and everything is decoded, when one of these shows:

    - an error of the demuxer, a packet that it calls damaged, or an end before the promised one;
    - a packet that is no unbroken sequence of proper units: an overwritten length or header, a hole of
      zeros, a packet cut short;
    - a packet without a picture or with two that are shown, without a time or with that of another; a stream
      that does not begin with an IDR or, where there is none, with a key frame; a gap between two frames that
      is larger than the others;
    - a first frame that does not decode.

    What does not show is damage inside the coded picture data that leaves lengths, headers and escapes
    alone, such as a flipped bit. Then all frames count, `broken` is None, and `read_windows` finds the damage
    when it decodes a wanted frame that depends on it: the window fails with the reason. (Decoding finds
    such damage as far as the decoder notices it: FFmpeg's for H.264 mostly does, those for others hardly
    ever.) One case is beyond both: a header that comes to say that no other picture needs this one, so that
    `read_windows` leaves it out. A picture that HEVC marks as not to be shown counts, too.

    Args:
        source: bytes, local path or seekable binary file.
        limits: what the clip may cost.

    Raises:
        ClipError: as `probe`.
    """
    limits = limits or Limits()
    watch = Stopwatch(limits.max_seconds)
    with open_video(source, limits, watch) as (container, stream):
        index = index_packets(container, stream, watch)
        info = _from_packets(index, container, stream, limits, watch)
    return info or probe(source, limits)


def describe(clean: CleanFrames, stream: Any, limits: Limits) -> VideoInfo:
    """Decodes all frames of a stream and tells what they are.

    Raises:
        ClipError: there is no frame, the pictures are too large, or the time is up.
    """
    frames = iter(clean)
    first = _first_frame(frames, clean)
    shape = Shape(first.frame, limits)
    times_s = np.array([first.time_s, *(timed.time_s for timed in frames)])
    return _info(times_s, stream, shape, broken=clean.broken)


def _from_packets(
    index: PacketIndex, container: Any, stream: Any, limits: Limits, watch: Stopwatch
) -> VideoInfo | None:
    """What the packets and the first frame tell; None where they can't be trusted."""
    # In mpeg-ts pictures carry no length, so that only decoding tells whether one is whole.
    if not can_skip(index) or not index.is_even or "mpegts" in container.format.name:
        return None
    skip_smoothing(stream)
    try:
        [(_, first)] = wanted_frames(index, stream, {0}, watch)
    except InexactError:
        return None
    return _info(index.times_s, stream, Shape(first, limits), broken=None)


def _info(times_s: npt.NDArray[np.float64], stream: Any, shape: Shape, *, broken: str | None) -> VideoInfo:
    width, height = shape.shown_size
    return VideoInfo(
        times_s=times_s,
        frame_rate=stream_rate(stream) or _counted_rate(times_s, stream),
        width=width,
        height=height,
        codec=stream.codec_context.codec.canonical_name,
        rotation_deg=shape.orientation.rotation_deg,
        broken=broken,
    )


def _first_frame(frames: Iterator[TimedFrame], clean: CleanFrames) -> TimedFrame:
    first = next(frames, None)
    if first is None:
        reason = f": {clean.broken}" if clean.broken else ""
        raise ClipError(f"not one frame of the clip can be decoded{reason}")
    return first


def _counted_rate(times_s: npt.NDArray[np.float64], stream: Any) -> float:
    """Returns frames / duration; the last frame lasts as long as the others on average."""
    if len(times_s) > 1:
        return float((len(times_s) - 1) / (times_s[-1] - times_s[0]))
    duration_s = float((stream.duration or 0) * stream.time_base)
    return 1.0 / duration_s if duration_s > 0 else 1.0
