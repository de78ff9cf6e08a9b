"""Where clips lie: finding them for `ingest`, and opening one for the decoder.

A location is a path (`/Volumes/...` included), a `file:` or `dbfs:` URI, or the URI of any file system
that Arrow reads (`s3://`, `gs://`, `abfss://`, `hdfs://`). Credentials come from the environment, never
from the URI: URIs are stored in tables and printed in messages.
"""

import glob
import io
import os
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast
from urllib.parse import quote, quote_from_bytes, unquote_to_bytes, urlsplit

from conf.errors import ClipError, SettingsError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

WHOLE_READ_BYTES = 64 << 20
"""A remote clip up to this size is fetched in one request and decoded from memory."""

REMOTE_BUFFER_BYTES = 4 << 20
"""Larger ones are read in blocks of this size: one request for each small read is too slow."""

_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|(?:file|dbfs):/")
_GLOB = re.compile(r"[*?[]")


@dataclass(frozen=True)
class ClipFile:
    """One file found at a location.

    Attributes:
        uri: canonical URI, percent-encoded; `file:///...` for a local file.
        size_bytes: size of the file.
        mtime_us: time of the last change, microseconds since 1970; 0 where it is unknown.
        local: whether this machine reads it as an ordinary file.
    """

    uri: str
    size_bytes: int
    mtime_us: int
    local: bool


def open_clip(
    clip_bytes: bytes | None, clip_uri: str | None, *, whole_read_bytes: int = WHOLE_READ_BYTES
) -> str | BinaryIO:
    """Makes one clip readable; `clip_bytes` wins when both are given.

    A remote clip of at most `whole_read_bytes` is fetched at once.

    Returns:
        The path of a local file, or a seekable binary file that the caller closes.

    Raises:
        ClipError: neither is given, or the clip is empty, missing or may not be read.
    """
    if clip_bytes is not None:
        if not clip_bytes:
            raise ClipError("the clip is empty: clip_bytes has 0 bytes")
        return io.BytesIO(clip_bytes)
    if not clip_uri:
        raise ClipError("the clip has neither clip_bytes nor clip_uri")
    path = local_path(clip_uri)
    return _checked_local(path) if path is not None else _open_remote(clip_uri, whole_read_bytes)


def local_path(location: str) -> str | None:
    """Returns the path of a local location, or None where another file system is meant.

    >>> local_path("file:///clips/a%20b.mp4")
    '/clips/a b.mp4'
    >>> local_path("dbfs:/Volumes/main/clips"), local_path("s3://bucket/a.mp4")
    ('/Volumes/main/clips', None)
    """
    if not _URI.match(location):
        return location
    scheme, _, rest = location.partition(":")
    if scheme == "file":
        path = "/" + rest.removeprefix("//").removeprefix("localhost").lstrip("/")
        return os.fsdecode(unquote_to_bytes(path))
    if scheme == "dbfs":
        path = "/" + rest.lstrip("/")
        return path if path.startswith("/Volumes/") else "/dbfs" + path
    return None


def file_uri(path: str | os.PathLike[str]) -> str:
    """Returns the canonical URI of a local file; `local_path` turns it back.

    Symbolic links are kept: two names of one file are two clips.

    >>> file_uri("/clips/a #1.mp4")
    'file:///clips/a%20%231.mp4'
    """
    absolute = os.path.abspath(path)  # noqa: PTH100 (Path.absolute keeps "..")
    return "file://" + quote_from_bytes(os.fsencode(absolute), safe="/")


def list_clips(location: str) -> list[ClipFile]:
    """Lists the files of a location: one file, a folder with all below it, or a glob (`**` too).

    Hidden files and folders are skipped. Every other file counts, whatever its name ends in: what is
    no video gets its row with the reason.

    Returns:
        The files in order of their URIs, each once.

    Raises:
        SettingsError: nothing is there, it cannot be listed, or the URI carries a password.
    """
    path = local_path(location)
    try:
        found = _list_local(path) if path is not None else _list_remote(location)
        files = {file.uri: file for file in found}
    except OSError as error:
        raise SettingsError(f"input_path={location!r} cannot be listed: {error}") from error
    if not files:
        raise SettingsError(f"input_path={location!r}: no file is there")
    return [files[uri] for uri in sorted(files)]


def _checked_local(path: str) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ClipError(f"cannot read {path!r}: {_reason(error)}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ClipError(f"cannot read {path!r}: it is not a regular file")
    if status.st_size == 0:
        raise ClipError(f"the clip is empty: {path!r} has 0 bytes")
    if not os.access(path, os.R_OK):
        raise ClipError(f"cannot read {path!r}: permission denied")
    return path


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    return getattr(error, "strerror", None) or str(error)


def _open_remote(uri: str, whole_read_bytes: int) -> BinaryIO:
    try:
        file_system, path = remote_file_system(uri)
    except SettingsError as error:
        raise ClipError(str(error)) from error
    try:
        file = file_system.open_input_file(path)
        size = file.size()
        if size and size <= whole_read_bytes:
            with file:
                return io.BytesIO(file.read())
    except OSError as error:
        raise ClipError(f"cannot read {uri!r}: {_reason(error)}") from error
    if size == 0:
        raise ClipError(f"the clip is empty: {uri!r} has 0 bytes")
    return cast(BinaryIO, io.BufferedReader(file, REMOTE_BUFFER_BYTES))


def remote_file_system(uri: str) -> "tuple[FileSystem, str]":
    """Returns the file system of a URI, and the path in it; SettingsError where Arrow has none."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem

    parts = urlsplit(uri)
    if parts.password is not None:
        host = f"{parts.scheme}://***@{parts.hostname}"
        raise SettingsError(f"{host}: a URI may not carry a password; give credentials by the environment")
    scheme = {"s3a": "s3", "s3n": "s3"}.get(parts.scheme, parts.scheme)
    # "%" stays: what is encoded already must not be encoded twice.
    encoded = f"{scheme}://{parts.netloc}{quote(parts.path, safe='/%')}"
    if parts.query:
        encoded += f"?{parts.query}"
    try:
        file_system, path = FileSystem.from_uri(encoded)
    except (ArrowException, ValueError) as error:
        raise SettingsError(f"{uri!r} is on no file system that Arrow reads here: {error}") from error
    return file_system, path


def _list_local(path: str) -> Iterator[ClipFile]:
    names = [path]
    if not os.path.lexists(path) and _GLOB.search(path):
        names = glob.glob(path, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    for name in names:
        for file in _walk(name) if Path(name).is_dir() else [name]:
            if os.path.lexists(file):
                yield _local_file(file)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (os.path.join(parent, name) for name in files if not name.startswith("."))  # noqa: PTH118


def _raise(error: OSError) -> None:
    raise error


def _local_file(path: str) -> ClipFile:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        # A dangling link is a clip that cannot be read, not one that was never there.
        status = os.lstat(path)
    return ClipFile(file_uri(path), status.st_size, status.st_mtime_ns // 1000, local=True)


def _list_remote(location: str) -> Iterator[ClipFile]:
    query = "?" + urlsplit(location).query if urlsplit(location).query else ""
    plain = location.removesuffix(query) if query else location
    base, pattern = _split_glob(plain)
    file_system, base_path = remote_file_system(base + query)
    for info in _remote_files(file_system, base_path):
        relative = info.path.removeprefix(base_path).lstrip("/")
        if pattern is not None and not pattern.fullmatch(relative):
            continue
        if any(part.startswith(".") for part in PurePosixPath(relative).parts):
            continue
        uri = base.rstrip("/") + "/" + quote(relative) if relative else base
        yield ClipFile(uri + query, info.size or 0, (info.mtime_ns or 0) // 1000, local=False)


def _remote_files(file_system: "FileSystem", path: str) -> "Iterable[FileInfo]":
    from pyarrow.fs import FileSelector, FileType

    info = file_system.get_file_info(path)
    if info.type == FileType.File:
        return [info]
    found = file_system.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
    return [info for info in found if info.type == FileType.File]


def _split_glob(uri: str) -> tuple[str, re.Pattern[str] | None]:
    """Splits at the first wildcard: the folder to list, and what its files must look like."""
    match = re.search(r"[*[]", uri)
    if match is None:
        return uri, None
    cut = uri.rindex("/", 0, match.start())
    return uri[:cut], _glob_pattern(uri[cut + 1 :])


def _glob_pattern(pattern: str) -> re.Pattern[str]:
    translated = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    tokens = re.findall(r"\*\*/|\*\*|\*|\[[^\]/]+\]|.", pattern)
    regex = "".join(
        translated.get(t) or (t.replace("[!", "[^", 1) if len(t) > 1 else re.escape(t)) for t in tokens
    )
    return re.compile(regex)
