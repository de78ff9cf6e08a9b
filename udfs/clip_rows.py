"""One file as a row of `clips`: by reference or by value, with the id of its content."""

import hashlib
import logging
import os

from conf.errors import ClipError
from udfs.identity import clip_uuid
from udfs.storage import ClipFile, local_path, open_clip

log = logging.getLogger(__name__)

_BLOCK_BYTES = 4 * 1024 * 1024


def clip_row(file: ClipFile, mode: str) -> dict[str, object]:
    """The columns of `clips` that a file decides; those of them that are null are missing.

    Args:
        file: the file. One that cannot be read is stored by reference, so that later stages say what is
            wrong with it.
        mode: `reference` or `value`.
    """
    row: dict[str, object] = {
        "clip_id": clip_uuid(file.uri),
        "source_video": file.uri,
        "content_id": f"{file.size_bytes}-{file.mtime_us}",
    }
    if mode == "reference" and not file.local:
        return row | {"clip_uri": file.uri}
    try:
        if mode == "reference":
            return row | {"clip_uri": file.uri, "content_id": _local_content(file)}
        data = _read(file)
    except (ClipError, OSError) as error:
        log.warning("clip_uri=%s %s", file.uri, error)
        return row | {"clip_uri": file.uri}
    return row | {"clip_bytes": data, "content_id": f"{len(data)}-{hashlib.sha256(data).hexdigest()[:32]}"}


def _read(file: ClipFile) -> bytes:
    """All bytes of a file; an empty one is a clip too, and later stages say what is wrong with it."""
    if not file.size_bytes:
        return b""
    source = open_clip(None, file.uri)
    with open(source, "rb") if isinstance(source, str) else source as stream:  # noqa: PTH123
        return bytes(stream.read())


def _local_content(file: ClipFile) -> str:
    path = local_path(file.uri) or file.uri
    if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113 (names need not be UTF-8)
        # Opening a named pipe would wait for ever.
        raise ClipError(f"cannot read {path!r}: it is not a regular file")
    digest = hashlib.sha256()
    with open(path, "rb") as stream:  # noqa: PTH123
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return f"{file.size_bytes}-{digest.hexdigest()[:32]}"
