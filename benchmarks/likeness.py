"""How like the source previews are: SSIM of their frames against the frames that they show."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.our_way import Rows
from tests.pictures import ssim
from udfs.preview import preview_frames


def preview_likeness(path: Path, rows: Rows, folders: dict[str, Path]) -> dict[str, float]:
    """Mean SSIM of the previews in each folder over all their frames.

    Args:
        path: the clip.
        rows: its windows.
        folders: folders with one WebP for each window, by name.
    """
    times_s = _times(path)
    wanted: dict[int, list[tuple[int, int]]] = {}
    for at, row in enumerate(rows):
        start, end = row["start_frame"], row["end_frame"]
        picks = preview_frames(times_s[start : end + 1], target_fps=1.0)
        for slot, pick in enumerate(picks):
            wanted.setdefault(start + pick, []).append((at, slot))
    found: dict[str, list[float]] = {name: [] for name in folders}
    for number, source in enumerate(_pictures(path, set(wanted))):
        for at, slot in wanted.get(number, []):
            for name, folder in folders.items():
                with Image.open(folder / f"{at}.webp") as image:
                    image.seek(slot)
                    shown = np.asarray(image.convert("RGB"))
                found[name].append(ssim(shown, _scaled(source, shown.shape[1], shown.shape[0])))
    return {name: round(float(np.mean(values)), 4) for name, values in found.items()}


def _scaled(frame: Any, width: int, height: int) -> npt.NDArray[np.uint8]:
    picture = Image.fromarray(frame.to_ndarray(format="rgb24"))
    return np.asarray(picture.resize((width, height), Image.Resampling.BICUBIC))


def _times(path: Path) -> npt.NDArray[np.float64]:
    with av.open(str(path)) as container:
        return np.array([frame.time for frame in container.decode(container.streams.best("video"))])


def _pictures(path: Path, wanted: set[int]) -> Any:
    """All frames in order; None for those that nobody wants."""
    with av.open(str(path)) as container:
        for number, frame in enumerate(container.decode(container.streams.best("video"))):
            yield frame if number in wanted else None
