"""Checking WebP files by decoding them."""

import io

from PIL import Image

from conf.errors import PreviewError


def check_webp(webp: bytes, *, num_frames: int, height: int) -> tuple[int, int, int]:
    """Decodes every frame of a WebP file and checks that it is what was ordered.

    Args:
        webp: the file.
        num_frames: expected number of frames; more than one must be an animation without end.
        height: expected height in pixels.

    Returns:
        Width and height in pixels, and the number of frames.

    Raises:
        PreviewError: it does not decode, or has another height, number of frames or no endless loop.
    """
    try:
        width, found_height, found_frames, loop = _decode(webp)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise PreviewError(f"the WebP of {len(webp)} bytes does not decode: {error}") from error
    if found_height != height:
        raise PreviewError(f"the WebP is {found_height} pixels high instead of {height}")
    if found_frames != num_frames:
        raise PreviewError(f"the WebP has {found_frames} frames instead of {num_frames}")
    if num_frames > 1 and loop != 0:
        raise PreviewError(f"the WebP ends after {loop} loops instead of never")
    return width, found_height, found_frames


def _decode(webp: bytes) -> tuple[int, int, int, int]:
    with Image.open(io.BytesIO(webp), formats=["WEBP"]) as image:
        num_frames = getattr(image, "n_frames", 1)
        for index in range(num_frames):
            image.seek(index)
            image.load()
        return image.width, image.height, num_frames, int(image.info.get("loop", 0))
