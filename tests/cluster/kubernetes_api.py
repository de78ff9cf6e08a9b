"""A small Kubernetes API server on loopback: it keeps the objects that clients send, and runs no pod."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

Object = dict[str, Any]

APPLY = "application/apply-patch+yaml"
LISTS = {"pods": "PodList", "persistentvolumeclaims": "PersistentVolumeClaimList"}
"""What Spark asks for lists of."""


@dataclass
class Api:
    """The server and what it was sent.

    Attributes:
        url: where it listens.
        objects: by path, e.g. `/api/v1/namespaces/media/pods/driver`; none is ever changed or removed.
    """

    url: str = ""
    objects: dict[str, Object] = field(default_factory=dict)
    changed: threading.Condition = field(default_factory=threading.Condition)
    closing: bool = False

    def found(self, collection: str, selector: str = "", among: slice = slice(None)) -> list[Object]:
        """The objects of a collection that have these labels, in order, among all or a part of all."""
        with self.changed:
            all_of_them = list(self.objects.items())[among]
        return [
            one for path, one in all_of_them if path.startswith(f"{collection}/") and selected(one, selector)
        ]

    def add(self, path: str, sent: Object) -> Object:
        """Keeps an object as the API does: with an identity, a version and, for a pod, a phase."""
        namespace, _, name = path.split("/namespaces/")[1].split("/")
        with self.changed:
            version = str(len(self.objects) + 1)
            given = {"name": name, "namespace": namespace, "uid": str(uuid4()), "resourceVersion": version}
            status = {"status": {"phase": "Pending"}} if sent["kind"] == "Pod" else {}
            self.objects[path] = {**sent, "metadata": {**sent["metadata"], **given}, **status}
            self.changed.notify_all()
            return self.objects[path]

    def wait_for_more_than(self, count: int) -> int:
        """Waits for another object, or the end; returns how many there are."""
        with self.changed:
            self.changed.wait_for(lambda: self.closing or len(self.objects) > count)
            return len(self.objects)


def selected(one: Object, selector: str) -> bool:
    """Whether the object has the labels, e.g. `spark-role=executor,spark-exec-inactive!=true`."""
    labels = one["metadata"].get("labels", {})
    for term in filter(None, selector.split(",")):
        name, value = term.split("=")
        if (labels.get(name.removesuffix("!")) == value) == name.endswith("!"):
            return False
    return True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def do_POST(self) -> None:
        sent = self._sent()
        path = f"{self._path}/{sent['metadata']['name']}"
        if path in self.api.objects:
            self._refuse(409, "AlreadyExists")
        else:
            self._send(201, self.api.add(path, sent))

    def do_PATCH(self) -> None:
        sent = self._sent()
        if self.headers["Content-Type"] != APPLY or self._path in self.api.objects:
            self._refuse(415, "UnsupportedMediaType")  # Spark makes objects with it and changes none.
        else:
            self._send(201, self.api.add(self._path, sent))

    def do_GET(self) -> None:
        name, selector = self._path.rpartition("/")[2], self._query("labelSelector")
        if self._path in self.api.objects:
            self._send(200, self.api.objects[self._path])
        elif name not in LISTS:
            self._refuse(404, "NotFound")
        elif self._query("watch"):
            self._watch(selector, seen=int(self._query("resourceVersion") or 0))
        else:
            metadata = {"resourceVersion": str(len(self.api.objects))}
            items = self.api.found(self._path, selector)
            self._send(200, {"kind": LISTS[name], "apiVersion": "v1", "metadata": metadata, "items": items})

    def _watch(self, selector: str, seen: int) -> None:
        """Sends what is made until the server closes, or the client does."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Connection", "close")
        self.end_headers()
        while not self.api.closing:
            count = self.api.wait_for_more_than(seen)
            for made in self.api.found(self._path, selector, slice(seen, count)):
                self.wfile.write(json.dumps({"type": "ADDED", "object": made}).encode() + b"\n")
            seen = count

    @property
    def _path(self) -> str:
        return urlsplit(self.path).path

    def _query(self, name: str) -> str:
        return parse_qs(urlsplit(self.path).query).get(name, [""])[0]

    def _sent(self) -> Object:
        sent: Object = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        return sent

    def _refuse(self, code: int, reason: str) -> None:
        status = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
        self._send(code, status)

    def _send(self, code: int, answer: Object) -> None:
        body = json.dumps(answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def kubernetes_api() -> Iterator[Api]:
    """Serves an empty cluster on a free port of loopback."""
    api = Api()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"api": api}))
    server.daemon_threads = True
    api.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield api
    finally:
        with api.changed:
            api.closing = True
            api.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()
