"""Makes the clips that the tests need: every frame carries its number, drawn as a bar code.

`make_clip` writes one clip, `read_index` reads the number back from a decoded picture, and the rest makes
files that are hard or broken on purpose.
"""

import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from demo.drawing import Frame
from demo.make_clips import draw_scene, write_video

NUM_BITS = 12
"""Bits of the bar code: numbers up to 4095."""

CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "options": {"preset": "ultrafast", "crf": "12"}},
    "h265": {
        "codec": "libx265",
        "options": {"preset": "ultrafast", "crf": "12", "x265-params": "log-level=none"},
    },
    "vp8": {"codec": "libvpx", "options": {"deadline": "realtime", "cpu-used": "8", "b": "2M"}},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8", "b": "2M"}},
    "av1": {"codec": "libsvtav1", "options": {"preset": "12", "crf": "20", "svtav1-params": "lp=1"}},
    "mpeg4": {"codec": "mpeg4", "options": {"qscale": "2"}},
}


def draw_numbered(index: int, *, size: tuple[int, int], seed: int = 0, num_frames: int = 60) -> Frame:
    """Draws a moving scene with `index` as a bar code over the top quarter of the picture.

    Args:
        index: number to draw, below 4096.
        size: width and height in pixels; width at least 48.
        seed: which scene.
        num_frames: length of the scene.

    Returns:
        uint8 (height, width, 3), RGB.
    """
    picture = draw_scene(index, num_frames=num_frames, size=size, seed=seed)
    width, height = size
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        picture[: height // 4, left:right] = 235 if index >> bit & 1 else 16
    return picture


def read_index(picture: Frame) -> int:
    """Reads the number that `draw_numbered` drew; raises ValueError where the bar code is spoilt."""
    height, width = picture.shape[:2]
    index = 0
    for bit in range(NUM_BITS):
        left, right = bit * width // NUM_BITS, (bit + 1) * width // NUM_BITS
        margin = (right - left) // 4
        cell = picture[height // 16 : height // 6, left + margin : right - margin]
        level = float(cell.mean())
        if 80 < level < 170:
            raise ValueError(f"bit {bit} is neither dark nor light: {level:.0f}")
        index |= int(level > 125) << bit
    return index


def make_clip(
    path: Path,
    *,
    num_frames: int = 60,
    size: tuple[int, int] = (96, 64),
    frame_rate: Fraction | int = 30,
    codec: str = "h264",
    gop: int = 30,
    b_frames: int = 0,
    seed: int = 0,
    numbered: bool = True,
    options: dict[str, str] | None = None,
    **how: Any,
) -> Path:
    """Writes one clip; the container follows from the file's name.

    Args:
        path: where to write.
        num_frames: number of frames.
        size: width and height as displayed, in pixels.
        frame_rate: frames per second.
        codec: a key of `CODECS`.
        gop: frames from one key frame to the next.
        b_frames: B-frames in a row (H.264, H.265 and MPEG-4).
        seed: which scene is shown.
        numbered: draws the bar code.
        options: more options of the encoder.
        **how: further arguments of `write_video` (`pix_fmt`, `times_s`, `rotation_deg`, `audio`,
            `container_options`).

    Returns:
        `path`.
    """

    def draw(index: int) -> Frame:
        if numbered:
            return draw_numbered(index, size=size, seed=seed, num_frames=num_frames)
        return draw_scene(index, num_frames=num_frames, size=size, seed=seed)

    encoder = CODECS[codec]
    all_options = {**encoder["options"], "g": str(gop), **(options or {})}
    if codec in ("h264", "h265", "mpeg4"):
        all_options["bf"] = str(b_frames)
    frames = map(draw, range(num_frames))
    return write_video(
        path, frames, frame_rate=frame_rate, codec=encoder["codec"], options=all_options, **how
    )


def uneven_times(index: int) -> float:
    """Presentation time of frame `index` of a clip with a variable frame rate, in seconds."""
    return index / 30 + 0.4 * (index // 10) + 0.005 * (index % 3)


def run_ffmpeg(*arguments: str | Path) -> bytes:
    """Runs the static ffmpeg of `imageio_ffmpeg` and returns its standard output."""
    import imageio_ffmpeg

    command = [
        imageio_ffmpeg.get_ffmpeg_exe(),
        "-hide_banner",
        "-loglevel",
        "error",
        "-y",
        *map(str, arguments),
    ]
    return subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, timeout=120
    ).stdout


def make_edit_list_clip(path: Path, *, skip_s: float = 0.5, **how: Any) -> Path:
    """Writes an mp4 whose edit list hides its first frames: it starts between two key frames."""
    whole = make_clip(path.with_name("whole_" + path.name), **how)
    run_ffmpeg("-ss", str(skip_s), "-i", whole, "-c", "copy", path)
    return path


def make_audio_only(path: Path) -> Path:
    """Writes a file with sound and no picture."""
    run_ffmpeg("-f", "lavfi", "-i", "sine=d=1", "-c:a", "aac", path)
    return path


def make_playlist(path: Path, target: Path) -> Path:
    """Writes an HLS playlist that plays another file."""
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n")
    return path


def make_concat_script(path: Path, target: Path) -> Path:
    """Writes a script of ffmpeg's concat format that plays another file."""
    path.write_text(f"ffconcat version 1.0\nfile '{target}'\n")
    return path


def make_two_pass_clip(path: Path, *, encoder: str) -> Path:
    """Makes a clip of VP8 or VP9 that has pictures which are never shown: libvpx makes them in a second pass.

    Args:
        path: of the clip; its suffix names the container.
        encoder: `libvpx` or `libvpx-vp9`.

    Returns:
        `path`.
    """
    source = ("-i", make_clip(path.with_suffix(".source.mkv")))
    how = ("-c:v", encoder, "-b:v", "200k", "-g", "40", "-auto-alt-ref", "1", "-lag-in-frames", "25")
    log = ("-deadline", "good", "-cpu-used", "4", "-passlogfile", path.with_suffix(".pass"))
    run_ffmpeg(*source, *how, *log, "-pass", "1", "-f", "null", "-")
    run_ffmpeg(*source, *how, *log, "-pass", "2", path)
    return path


def truncate(source: Path, path: Path, *, keep: float) -> Path:
    """Copies the first part of a file; `keep` is the share of its bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def spoil_packet(source: Path, path: Path, *, number: int) -> Path:
    """Copies a file and overwrites its `number`-th video packet (in file order, from 0) with 0xFF."""
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        packet = list(container.demux(video=0))[number]
        assert packet.pos is not None
        data[packet.pos : packet.pos + packet.size] = b"\xff" * packet.size
    path.write_bytes(data)
    return path
