"""Cutting pending work into bounded commits."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

CELL_CLIPS = 4096
"""Clips of one cell. Commits of one config to one cell exclude each other, so a commit stays in a cell
whatever `windows_per_commit` its job was given."""


@dataclass(frozen=True)
class Chunk:
    """The clips of one commit: `first_clip_no` to `last_clip_no`, both inclusive."""

    first_clip_no: int
    last_clip_no: int
    num_items: int

    @property
    def cell(self) -> int:
        """The cell that the chunk lies in."""
        return self.first_clip_no // CELL_CLIPS

    @property
    def where(self) -> str:
        """The chunk as a literal SQL condition, so that Delta skips the files of other clips."""
        return f"clip_no BETWEEN {self.first_clip_no} AND {self.last_clip_no}"

    @property
    def cell_where(self) -> str:
        """The chunk's cell as a literal SQL condition."""
        return f"clip_no BETWEEN {self.cell * CELL_CLIPS} AND {(self.cell + 1) * CELL_CLIPS - 1}"


def plan_chunks(pending: Iterable[tuple[int, int]], *, per_commit: int) -> Iterator[Chunk]:
    """Groups clips into chunks of at most `per_commit` items.

    A clip with more items than that is a chunk of its own.

    Args:
        pending: `(clip_no, number of items)`, sorted by `clip_no`.
        per_commit: most items of a chunk.

    Example:
        >>> list(plan_chunks([(0, 2), (1, 2), (5, 1)], per_commit=3))
        [Chunk(first_clip_no=0, last_clip_no=0, num_items=2),
         Chunk(first_clip_no=1, last_clip_no=5, num_items=3)]
    """
    chunk: Chunk | None = None
    for clip_no, count in pending:
        one = Chunk(clip_no, clip_no, count)
        if chunk and chunk.cell == one.cell and chunk.num_items + count <= per_commit:
            chunk = Chunk(chunk.first_clip_no, clip_no, chunk.num_items + count)
        else:
            if chunk:
                yield chunk
            chunk = one
    if chunk:
        yield chunk
