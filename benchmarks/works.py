"""The pieces of work that `cpu_path` measures, each a function of text arguments."""

import json
from pathlib import Path
from typing import Any

from benchmarks import our_way, peer_way


def peer(path: str, encoder: str, folder: str) -> list[str]:
    """The peer's whole way; returns its commands and leaves the previews in a folder."""
    result = peer_way.run_peer(Path(path), encoder)
    peer_way.check_peer(result, Path(path))
    _save(result.previews, folder)
    return result.commands


def windows_checked(path: str, rows_file: str) -> int:
    """Our windows with `--check-frames`: a look at every frame."""
    return _save_rows(our_way.cut(Path(path), check_frames=True), rows_file)


def windows_by_packets(path: str, rows_file: str) -> int:
    """Our windows by packets, the default."""
    return _save_rows(our_way.cut(Path(path), check_frames=False), rows_file)


def frames_and_previews(path: str, rows_file: str, folder: str) -> list[Any]:
    """Our frames and previews in one pass; returns the shapes of the frames."""
    result = our_way.prepare(Path(path), json.loads(Path(rows_file).read_text()))
    _save(result.previews, folder)
    return result.shapes


def frames(path: str, rows_file: str) -> list[Any]:
    """Our frames alone."""
    return our_way.frames_only(Path(path), json.loads(Path(rows_file).read_text())).shapes


def floor(path: str) -> int:
    """Every frame decoded, and nothing done with it."""
    return our_way.decode_everything(Path(path))


def windows_and_previews(*paths: str) -> int:
    """Our windows and previews of several clips, as two jobs make them; returns the number of previews."""
    made = 0
    for path in paths:
        rows = our_way.cut(Path(path), check_frames=False)
        made += len(our_way.previews_only(Path(path), rows).previews)
    return made


def _save_rows(rows: our_way.Rows, rows_file: str) -> int:
    Path(rows_file).write_text(json.dumps(rows))
    return len(rows)


def _save(previews: list[bytes], folder: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    for at, webp in enumerate(previews):
        (Path(folder) / f"{at}.webp").write_bytes(webp)
