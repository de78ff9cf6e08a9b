"""A small model hub on loopback: repositories of files at commits, with ranges, and faults on demand."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 20


@dataclass
class Hub:
    """The hub and what was asked of it.

    Attributes:
        url: where it listens.
        files: bytes by file name, by commit, by repository.
        cuts: the next download of a file ends after so many bytes.
        stalls: a download of a file stops after so many bytes, and waits for ever.
        asked: `(file, first byte)` of every download.
        listings: how often the files of a commit were asked for.
        stalled: set when a download has stopped.
    """

    url: str = ""
    files: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)
    stalls: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, int]] = field(default_factory=list)
    listings: int = 0
    stalled: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    def fetched(self) -> list[str]:
        """The files that were downloaded, one entry for each time."""
        return sorted(name for name, first in self.asked if first == 0)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _answer(self, *, with_body: bool) -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        if parts[:2] == ["api", "models"] and "revision" in parts:
            repo, revision = "/".join(parts[2:-2]), parts[-1]
            self._listing(repo, revision)
        elif "resolve" in parts:
            repo, (revision, name) = "/".join(parts[:-3]), parts[-2:]
            self._file(repo, revision, name, with_body=with_body)
        else:
            self._refuse("EntryNotFound")

    def _listing(self, repo: str, revision: str) -> None:
        self.hub.listings += 1
        if revision not in self.hub.files.get(repo, {}):
            self._refuse("RevisionNotFound" if repo in self.hub.files else "RepoNotFound")
            return
        siblings = []
        for name, data in self.hub.files[repo][revision].items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git_blob_id(data)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "size": len(data),
                    "pointerSize": 130,
                }
            siblings.append(entry)
        body = json.dumps({"id": repo, "modelId": repo, "sha": revision, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _file(self, repo: str, revision: str, name: str, *, with_body: bool) -> None:
        files = self.hub.files.get(repo, {}).get(revision)
        if files is None or name not in files:
            self._refuse("RevisionNotFound" if files is None else "EntryNotFound")
            return
        data = files[name]
        is_large = name.endswith(".safetensors")
        etag = hashlib.sha256(data).hexdigest() if is_large else git_blob_id(data)
        headers = {"X-Repo-Commit": revision, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        ranged = self.headers.get("Range")
        first = int(ranged.removeprefix("bytes=").split("-")[0]) if ranged else 0
        if ranged:
            headers["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        if not with_body:
            self._send(200, headers | {"Content-Length": str(len(data))}, b"")
            return
        self.hub.asked.append((name, first))
        self._send(
            206 if ranged else 200, headers | {"Content-Length": str(len(data) - first)}, data[first:], name
        )

    def _send(self, status: int, headers: dict[str, str], body: bytes, name: str = "") -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        end = self.hub.cuts.pop(name, None) or self.hub.stalls.get(name)
        for start in range(0, len(body), BLOCK):
            if end is not None and start >= end:
                break
            self.wfile.write(body[start : start + BLOCK])
        if end is not None:
            self.wfile.flush()
            if name in self.hub.stalls:
                self.hub.stalled.set()
                self.hub.closing.wait()
            self.close_connection = True

    def _refuse(self, code: str) -> None:
        self._send(404, {"X-Error-Code": code, "X-Error-Message": code}, b"{}")


@contextmanager
def running(hub: Hub) -> Iterator[Hub]:
    """Serves `hub` on a free port of loopback."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


def git_blob_id(data: bytes) -> str:
    """The id that git gives a file."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data).hexdigest()


def safetensors(num_bytes: int, *, fill: int) -> bytes:
    """A shard of one tensor."""
    header = {"w": {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}}
    packed = json.dumps(header).encode()
    return len(packed).to_bytes(8, "little") + packed + bytes([fill]) * num_bytes


def checkpoint(*shard_bytes: int, fill: int = 1) -> dict[str, bytes]:
    """The files of a checkpoint of several shards."""
    count = len(shard_bytes)
    shards = {
        f"model-{number:05d}-of-{count:05d}.safetensors": safetensors(size, fill=fill + number)
        for number, size in enumerate(shard_bytes, 1)
    }
    index = {"weight_map": {f"w{number}": name for number, name in enumerate(shards)}}
    return {
        "config.json": b'{"model_type": "any"}',
        "merges.txt": b"a b\n",
        "README.md": b"not a weight",
        "model.safetensors.index.json": json.dumps(index).encode(),
        **shards,
    }
