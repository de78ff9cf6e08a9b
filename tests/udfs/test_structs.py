"""Structs as UDFs get them: a frame number that is a float names files and finds frames of nothing."""

from udfs.structs import with_integers


def test_integers_that_came_as_floats_are_integers_again_and_nothing_else_changes() -> None:
    window = {"start_frame": 3.0, "end_frame": 44, "height": None, "start_s": 0.5, "window_id": "w"}
    whole = with_integers(window, ("start_frame", "end_frame", "height", "window_index"))
    assert whole == {"start_frame": 3, "end_frame": 44, "height": None, "start_s": 0.5, "window_id": "w"}
    assert [type(whole[name]) for name in ("start_frame", "end_frame")] == [int, int]
