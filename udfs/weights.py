"""Model weights on this machine: whether they are complete, and fetching those that are not here.

Weights come in two ways. A person copied them: then the folder holds no record, and it is never written
to. Or they are fetched from the model hub: then a record in the folder says which revision they are to
be, and whether all of it has arrived.
"""

import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from conf.engine import HubWeights
from conf.errors import WeightsError

log = logging.getLogger(__name__)

PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
"""The files of a repository that decide what a model answers; no other is fetched."""

RECORD = ".captionlake-weights"
LOCK = ".captionlake-lock"

_FETCHES_AT_ONCE = 4
_BLOCK_BYTES = 16 * 1024 * 1024
_MAX_HEADER_BYTES = 100 * 1024 * 1024


@dataclass(frozen=True)
class Record:
    """What a folder of fetched weights is to hold.

    Attributes:
        repo_id: the repository.
        revision: the commit.
        sizes: bytes by file name.
        complete: all files have arrived and were checked.
    """

    repo_id: str
    revision: str
    sizes: dict[str, int] = field(default_factory=dict)
    complete: bool = False


@dataclass(frozen=True)
class _HubFile:
    """A file as the hub lists it; large ones by SHA-256, small ones by their git blob id."""

    name: str
    num_bytes: int
    sha256: str | None
    blob_id: str | None


def ensure_weights(path: Path, wanted: HubWeights) -> None:
    """Makes `path` hold the wanted weights; fetches what is missing, once however many ask.

    Raises:
        WeightsError: they are not here and cannot be fetched, or other weights are in their place.
    """
    if _is_ready(path, wanted):
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        with _locked(path / LOCK):
            if not _is_ready(path, wanted):
                _fetch(path, wanted)
    except OSError as error:
        raise WeightsError(f"{_missing(path, wanted)}: {error}; {_advice(path)}") from error


def is_copied(path: Path) -> bool:
    """True when a person put weights there."""
    return read_record(path) is None and ((path / "config.json").is_file() or any(path.glob("*.safetensors")))


def read_record(path: Path) -> Record | None:
    """The record of fetched weights; None where there is none that can be read."""
    try:
        return Record(**json.loads((path / RECORD).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def problems(path: Path, *, made_up: bool = False) -> list[str]:
    """What a checkpoint lacks, told from its index and the headers of its shards; empty when nothing.

    Args:
        path: the checkpoint.
        made_up: the engine makes the weights up, so that none are needed.
    """
    if not (path / "config.json").is_file():
        return ["config.json is missing"]
    if made_up:
        return []
    try:
        shards = _shards(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"model.safetensors.index.json cannot be read ({error})"]
    if not shards:
        return ["*.safetensors is missing"]
    return [problem for name in shards if (problem := _shard_problem(path / name)) is not None]


def _shards(path: Path) -> list[str]:
    """The names of a checkpoint's shards, those of its index first."""
    index = path / "model.safetensors.index.json"
    found = sorted(file.name for file in path.glob("*.safetensors"))
    if index.is_file():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    if any(fnmatch(name, "*-of-*.safetensors") for name in found):
        raise ValueError("it is missing, and the shards are several")
    return found


def _shard_problem(shard: Path) -> str | None:
    if not shard.is_file():
        return f"{shard.name} is missing"
    have = shard.stat().st_size
    try:
        want = _safetensors_bytes(shard)
    except (OSError, ValueError, KeyError, TypeError):
        return f"{shard.name} is no safetensors file, or cut off in its header"
    return None if have == want else f"{shard.name} has {have} of {want} bytes"


def _safetensors_bytes(shard: Path) -> int:
    """How many bytes a shard has by its own header: 8, the header, and the last tensor's end."""
    with shard.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        if header_bytes > _MAX_HEADER_BYTES:
            raise ValueError("no header")
        header = json.loads(stream.read(header_bytes))
    ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    return 8 + header_bytes + max(ends, default=0)


def _is_ready(path: Path, wanted: HubWeights) -> bool:
    """Whether the wanted weights are complete, without opening a file; WeightsError for a person's copy."""
    record = read_record(path)
    if record is None:
        if is_copied(path):
            raise WeightsError(
                f"{path} holds weights that were copied there, and the driver, which has none, asks for "
                f"{wanted.repo_id} at revision {wanted.revision}: put the same copy on the driver, or remove "
                "this one so that they are fetched"
            )
        return False
    is_wanted = record.complete and record.revision == wanted.revision
    return is_wanted and all(_size(path / name) == size for name, size in record.sizes.items())


def _fetch(path: Path, wanted: HubWeights) -> None:
    files = _listing(path, wanted)
    record = Record(wanted.repo_id, wanted.revision, {file.name: file.num_bytes for file in files})
    _remove_stale(path, record)
    _write_record(path, record)
    todo = [file for file in files if not _is_here(path, file)]
    total = sum(file.num_bytes for file in todo)
    log.info("weights=%s revision=%s files=%d bytes=%d", wanted.repo_id, wanted.revision, len(todo), total)
    with ThreadPoolExecutor(_FETCHES_AT_ONCE) as pool:
        for _ in pool.map(lambda file: _fetch_file(path, wanted, file), todo):
            pass
    if lacking := problems(path):
        raise WeightsError(
            f"{wanted.repo_id} has no complete weights at revision {wanted.revision}: {'; '.join(lacking)}"
        )
    _write_record(path, Record(**(asdict(record) | {"complete": True})))
    log.info("weights=%s revision=%s complete path=%s", wanted.repo_id, wanted.revision, path)


def _listing(path: Path, wanted: HubWeights) -> list[_HubFile]:
    try:
        from huggingface_hub import HfApi
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError
    except ImportError as error:
        raise WeightsError(
            f"{_missing(path, wanted)}, and huggingface_hub, which fetches them, is not installed; "
            f"{_advice(path)}"
        ) from error
    try:
        info = HfApi(endpoint=_endpoint()).model_info(
            wanted.repo_id, revision=wanted.revision, files_metadata=True
        )
    except RevisionNotFoundError as error:
        raise WeightsError(
            f"the hub has no revision {wanted.revision} of {wanted.repo_id}; {_advice(path)}"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no {wanted.repo_id} that this account may read (HF_TOKEN); {_advice(path)}"
        ) from error
    except Exception as error:  # The hub's library has changed its HTTP client, and its errors, before.
        raise WeightsError(
            f"{_missing(path, wanted)}, and the hub cannot be asked for them "
            f"({_first_line(error)}); {_advice(path)}"
        ) from error
    return [_hub_file(sibling) for sibling in info.siblings or [] if _is_weight(sibling.rfilename)]


def _is_weight(name: str) -> bool:
    return "/" not in name and any(fnmatch(name, pattern) for pattern in PATTERNS)


def _hub_file(sibling: Any) -> _HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs else None
    return _HubFile(sibling.rfilename, int(sibling.size), sha256, sibling.blob_id)


def _fetch_file(path: Path, wanted: HubWeights, file: _HubFile) -> None:
    from huggingface_hub import hf_hub_download

    # What is there is another revision's, or broken.
    (path / file.name).unlink(missing_ok=True)
    try:
        hf_hub_download(
            wanted.repo_id, file.name, revision=wanted.revision, local_dir=path, endpoint=_endpoint()
        )
    except Exception as error:  # As above.
        raise WeightsError(
            f"{file.name} of {wanted.repo_id} could not be fetched ({_first_line(error)}); the files that "
            f"have arrived stay, so run the same command again, or {_advice(path)}"
        ) from error
    if not _is_here(path, file):
        (path / file.name).unlink(missing_ok=True)
        raise WeightsError(f"{file.name} of {wanted.repo_id} arrived with other bytes than the hub lists")
    log.info("weights=%s file=%s bytes=%d", wanted.repo_id, file.name, file.num_bytes)


def _is_here(path: Path, file: _HubFile) -> bool:
    """Whether a file is there with the size and the hash that the hub lists."""
    here = path / file.name
    if _size(here) != file.num_bytes:
        return False
    if file.sha256 is not None:
        return _digest(here, hashlib.sha256()) == file.sha256
    git = hashlib.sha1(f"blob {file.num_bytes}\0".encode(), usedforsecurity=False)
    return file.blob_id is None or _digest(here, git) == file.blob_id


def _digest(file: Path, digest: "hashlib._Hash") -> str:
    with file.open("rb") as stream:
        while block := stream.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _remove_stale(path: Path, record: Record) -> None:
    """Removes the files of an earlier revision that this one does not have; an engine would load them."""
    earlier = read_record(path)
    for name in set(earlier.sizes) - set(record.sizes) if earlier else ():
        (path / name).unlink(missing_ok=True)


def _write_record(path: Path, record: Record) -> None:
    draft = path / f"{RECORD}.{os.getpid()}"
    draft.write_text(json.dumps(asdict(record), indent=1), encoding="utf-8")
    draft.replace(path / RECORD)


def _size(file: Path) -> int:
    """A file's bytes; -1 where there is none."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return -1


@contextmanager
def _locked(lock: Path) -> Iterator[None]:
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("another process fetches weights; waiting for %s", lock)
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _endpoint() -> str | None:
    """The hub's address; read at each use, because the hub's library reads it once, at its import."""
    return os.environ.get("HF_ENDPOINT") or None


def _missing(path: Path, wanted: HubWeights) -> str:
    return f"the weights of {wanted.repo_id} (revision {wanted.revision}) are not complete in {path}"


def _advice(path: Path) -> str:
    return (
        "give this machine access to a hub (HF_ENDPOINT names a mirror), or copy the repository's files to "
        f"{path} on the driver and on every executor"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
