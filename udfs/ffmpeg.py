"""The ffmpeg program: which one is used, and whether it can make previews."""

import os
import subprocess

from conf.errors import SettingsError

FFMPEG_VARIABLE = "CAPTIONLAKE_FFMPEG"
_MEND = (
    f"unset {FFMPEG_VARIABLE} to use the ffmpeg that comes with `pip install imageio-ffmpeg`, or set it to "
    "the path of an ffmpeg that was built with --enable-libwebp"
)


def find_ffmpeg() -> str:
    """Returns the ffmpeg to run: `CAPTIONLAKE_FFMPEG`, else that of imageio-ffmpeg.

    Raises:
        SettingsError: there is none.
    """
    named = os.environ.get(FFMPEG_VARIABLE)
    if named:
        return named
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise SettingsError(f"there is no ffmpeg: {_MEND}") from error


def check_ffmpeg() -> str:
    """Returns the ffmpeg to run after making sure that it has the encoder of previews.

    Raises:
        SettingsError: it does not run or has no libwebp; the message says how to mend it.
    """
    ffmpeg = find_ffmpeg()
    try:
        listed = subprocess.run(
            [ffmpeg, "-hide_banner", "-encoders"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=True,
        ).stdout.decode(errors="replace")
    except (OSError, subprocess.SubprocessError) as error:
        raise SettingsError(f"{FFMPEG_VARIABLE}: {ffmpeg!r} does not run ({error}); {_MEND}") from error
    if "libwebp" not in listed.split():
        raise SettingsError(f"{FFMPEG_VARIABLE}: {ffmpeg!r} has no libwebp encoder; {_MEND}")
    return ffmpeg
