"""Writing one file to where a location says: a path, or the URI of any file system that Arrow writes."""

import os
import shutil
import uuid
from pathlib import Path
from typing import BinaryIO

from udfs.storage import local_path, remote_file_system

_BLOCK_BYTES = 4 << 20


def write_file(location: str, source: BinaryIO) -> None:
    """Writes a file whole or not at all; one that is there is replaced.

    Raises:
        OSError: it cannot be written.
        SettingsError: the location is on no file system that can be written here.
    """
    path = local_path(location)
    if path is None:
        file_system, remote_path = remote_file_system(location)
        with file_system.open_output_stream(remote_path) as out:
            shutil.copyfileobj(source, out, _BLOCK_BYTES)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name of its own, because a task that is tried again may meet its former self.
    draft = target.with_name(f".{uuid.uuid4().hex}")
    try:
        with draft.open("xb") as out:
            shutil.copyfileobj(source, out, _BLOCK_BYTES)
        os.replace(draft, target)  # noqa: PTH105
    finally:
        draft.unlink(missing_ok=True)
