"""All eight ways to lay a picture: a wrong one shows the model the world on its side."""

import struct

import numpy as np
import pytest

from udfs.orientation import Orientation, from_display_matrix

ONE = 1 << 16
PICTURE = np.arange(6, dtype=np.uint8).reshape(2, 3, 1).repeat(3, axis=2)


def matrix(a: int, b: int, c: int, d: int) -> bytes:
    return struct.pack("9i", a * ONE, b * ONE, 0, c * ONE, d * ONE, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize(
    ("abcd", "rotation_deg", "expected"),
    [
        ((1, 0, 0, 1), 0, [[0, 1, 2], [3, 4, 5]]),
        ((0, -1, 1, 0), 90, [[2, 5], [1, 4], [0, 3]]),
        ((-1, 0, 0, -1), 180, [[5, 4, 3], [2, 1, 0]]),
        ((0, 1, -1, 0), 270, [[3, 0], [4, 1], [5, 2]]),
        ((-1, 0, 0, 1), 0, [[2, 1, 0], [5, 4, 3]]),
        ((1, 0, 0, -1), 0, [[3, 4, 5], [0, 1, 2]]),
        ((0, 1, 1, 0), 270, [[0, 3], [1, 4], [2, 5]]),
        ((0, -1, -1, 0), 90, [[5, 2], [4, 1], [3, 0]]),
    ],
)
def test_a_display_matrix_lays_the_picture_as_players_do(
    abcd: tuple[int, int, int, int], rotation_deg: int, expected: list[list[int]]
) -> None:
    orientation = from_display_matrix(matrix(*abcd))
    shown = orientation.apply(PICTURE)
    assert shown[..., 0].tolist() == expected
    assert shown.flags.c_contiguous
    assert orientation.rotation_deg == rotation_deg
    assert orientation.shown_size(3, 2) == (shown.shape[1], shown.shape[0])


def test_a_matrix_of_zeros_changes_nothing() -> None:
    assert from_display_matrix(bytes(36)) == Orientation()
