"""Turning coded pictures the way they are shown (phones film lying down and note the rotation)."""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Orientation:
    """How to get from the coded picture to the shown one: first transpose, then mirror.

    Attributes:
        transpose: swap rows and columns.
        flip_x: mirror left and right, after the transposition.
        flip_y: mirror top and bottom, after the transposition.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @property
    def rotation_deg(self) -> int:
        """Counterclockwise turn of the picture: 0, 90, 180 or 270; a mirror image counts as its turn."""
        if self.transpose:
            return 90 if self.flip_y else 270
        return 180 if self.flip_y and self.flip_x else 0

    def apply(self, picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Turns a picture (height, width, 3); the result is contiguous."""
        if self.transpose:
            picture = picture.swapaxes(0, 1)
        return np.ascontiguousarray(picture[:: -1 if self.flip_y else 1, :: -1 if self.flip_x else 1])

    def shown_size(self, width: int, height: int) -> tuple[int, int]:
        """Returns width and height of the shown picture."""
        return (height, width) if self.transpose else (width, height)


def from_display_matrix(matrix: bytes) -> Orientation:
    """Reads ffmpeg's display matrix: nine int32, the first, second, fourth and fifth turn the picture.

    A turn that is no multiple of 90 degrees counts as the nearest one.

    >>> from_display_matrix(struct.pack("9i", 0, -65536, 0, 65536, 0, 0, 0, 0, 1 << 30)).rotation_deg
    90
    """
    a, b, _, c, d = struct.unpack("5i", matrix[:20])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(flip_x=a < 0, flip_y=d < 0)
    return Orientation(transpose=True, flip_x=c < 0, flip_y=b < 0)


def frame_orientation(frame: Any) -> Orientation:
    """Returns the orientation that comes with a PyAV frame."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            return from_display_matrix(bytes(data))
    return Orientation()
