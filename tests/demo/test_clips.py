"""The demo's clips: without them `make demo` has nothing to show."""

from pathlib import Path

import numpy as np

from demo.make_clips import main
from udfs.video import probe, read_windows


def test_the_demo_clips_are_sound_and_differ(tmp_path: Path) -> None:
    assert main([str(tmp_path / "clips")]) == 0
    paths = sorted((tmp_path / "clips").iterdir())
    assert {path.suffix for path in paths} == {".mp4", ".webm", ".mov"}
    assert len(paths) >= 6
    firsts = []
    for path in paths:
        info = probe(str(path))
        assert info.broken is None
        assert 5 <= info.num_frames / info.frame_rate <= 20
        [window] = read_windows(str(path), [[0, info.num_frames - 1]])
        assert window.frames is not None
        assert np.abs(window.frames[0].astype(int) - window.frames[1]).mean() > 1
        firsts.append(window.frames[0].mean(axis=(0, 1)))
    assert (probe(str(tmp_path / "clips" / "phone_upright.mov")).rotation_deg) == 90
    assert len({tuple(np.round(colour)) for colour in firsts}) == len(paths)
