"""Finding and opening clips: a wrong name or a swallowed error loses a clip without a row."""

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.errors import ClipError, SettingsError
from udfs.storage import file_uri, list_clips, local_path, open_clip

ODD_NAMES = ["a b.mp4", "ünï.mp4", "100%.mp4", "a#1?.mp4", "c:d.mp4", "e%20f.mp4"]


def names(location: str) -> list[str]:
    return [Path(str(local_path(f.uri))).name for f in list_clips(location)]


def test_bytes_are_readable_and_win_over_a_uri() -> None:
    file = open_clip(b"abc", "/nowhere")
    assert not isinstance(file, str)
    assert (file.read(), file.seek(1), file.read()) == (b"abc", 1, b"bc")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_local_clip_is_found_again_whatever_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    [found] = list_clips(str(tmp_path))
    assert found.uri.startswith("file:///")
    assert found.uri.isascii()
    assert " " not in found.uri
    assert (found.size_bytes, found.local) == (1, True)
    assert found.mtime_us == (tmp_path / name).stat().st_mtime_ns // 1000
    assert open_clip(None, found.uri) == str(tmp_path / name)
    assert open_clip(None, str(tmp_path / name)) == str(tmp_path / name)
    assert list_clips(found.uri) == [found]


@given(st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b and b"/" not in b))
def test_any_file_name_survives_the_round_trip_through_its_uri(raw: bytes) -> None:
    path = "/clips/x" + os.fsdecode(raw)
    assert local_path(file_uri(path)) == path


def test_a_folder_gives_everything_below_it_but_hidden_files(tmp_path: Path) -> None:
    for name in ["b.mp4", "deep/er/a.mkv", ".hidden.mp4", ".git/x.mp4", "note.txt"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert names(str(tmp_path)) == ["b.mp4", "a.mkv", "note.txt"]
    assert names(str(tmp_path / "*.mp4")) == ["b.mp4"]
    assert names(str(tmp_path / "**" / "*.m*")) == ["b.mp4", "a.mkv"]
    assert names(str(tmp_path / "d*")) == ["a.mkv"]


def test_a_file_named_like_a_glob_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "clip[1].mp4").write_bytes(b"x")
    (tmp_path / "clip1.mp4").write_bytes(b"x")
    assert names(str(tmp_path / "clip[1].mp4")) == ["clip[1].mp4"]


def test_a_dangling_link_is_listed_so_that_its_row_says_why(tmp_path: Path) -> None:
    (tmp_path / "gone.mp4").symlink_to(tmp_path / "nowhere.mp4")
    [found] = list_clips(str(tmp_path))
    with pytest.raises(ClipError, match="does not exist"):
        open_clip(None, found.uri)


@pytest.mark.parametrize("location", ["nothing.mp4", "*.mp4", "file:///no/such/folder", ""])
def test_a_location_without_files_is_refused_by_name(tmp_path: Path, location: str) -> None:
    with pytest.raises(SettingsError, match="no file is there"):
        list_clips(location if ":" in location else str(tmp_path / location))


def test_what_cannot_be_opened_says_why(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    os.mkfifo(tmp_path / "pipe.mp4")
    for uri, reason in [
        (tmp_path / "missing.mp4", "does not exist"),
        (tmp_path / "empty.mp4", "0 bytes"),
        (tmp_path, "not a regular file"),
        (tmp_path / "pipe.mp4", "not a regular file"),
        ("a\0b.mp4", "null"),
        ("http://example.invalid/a.mp4", "no file system that Arrow reads"),
        ("", "neither clip_bytes nor clip_uri"),
    ]:
        with pytest.raises(ClipError, match=reason):
            open_clip(None, str(uri))
    with pytest.raises(ClipError, match="0 bytes"):
        open_clip(b"", None)


def test_a_password_in_a_uri_is_refused_and_not_repeated() -> None:
    for call in (lambda u: open_clip(None, u), list_clips):
        with pytest.raises((ClipError, SettingsError), match="password") as caught:
            call("s3://key:verysecret@bucket/a.mp4")
        assert "verysecret" not in str(caught.value)


OBJECTS = {
    "clips/a b.mp4": b"0123456789",
    "clips/sub/ü.mkv": b"abc",
    "clips/.x/h.mp4": b"h",
    "other.mp4": b"o",
}


class ObjectStore(BaseHTTPRequestHandler):
    """Just enough of S3 for HEAD, GET with ranges, and listing."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        body = OBJECTS.get(self.key())
        self.answer(200 if body is not None else 404, b"", length=len(body or b""))

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        if "list-type" in query:
            self.answer(200, self.listing(query.get("prefix", [""])[0]))
        elif (body := OBJECTS.get(self.key())) is None:
            self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            self.answer(206, body[int(first) : int(last) + 1])

    def key(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix("/bucket/")

    def listing(self, prefix: str) -> bytes:
        entry = "<Contents><Key>{}</Key><Size>{}</Size><LastModified>{}</LastModified></Contents>"
        found = [(k, len(v)) for k, v in OBJECTS.items() if k.startswith(prefix)]
        entries = "".join(entry.format(k, n, "2026-01-02T03:04:05.000Z") for k, n in found)
        body = f"<ListBucketResult><KeyCount>{len(found)}</KeyCount>{entries}</ListBucketResult>"
        return ("<?xml version='1.0' encoding='UTF-8'?>" + body).encode()

    def answer(self, status: int, body: bytes, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.send_header("Last-Modified", "Fri, 02 Jan 2026 03:04:05 GMT")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keeps the test's output quiet."""


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    server = ThreadingHTTPServer(("127.0.0.1", 0), ObjectStore)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"?endpoint_override=127.0.0.1:{server.server_port}&scheme=http&region=us-east-1"
    server.shutdown()
    server.server_close()


def test_clips_in_an_object_store_are_listed_and_opened(bucket: str) -> None:
    found = list_clips(f"s3://bucket/clips{bucket}")
    assert [f.uri for f in found] == [
        f"s3://bucket/clips/a%20b.mp4{bucket}",
        f"s3://bucket/clips/sub/%C3%BC.mkv{bucket}",
    ]
    assert [(f.size_bytes, f.mtime_us, f.local) for f in found] == [
        (10, 1767323045000000, False),
        (3, 1767323045000000, False),
    ]
    for file, content in zip(found, [b"0123456789", b"abc"], strict=True):
        opened = open_clip(None, file.uri)
        assert not isinstance(opened, str)
        assert opened.read() == content
    assert list_clips(found[0].uri) == found[:1]
    assert list_clips(f"s3a://bucket/clips/**/*.mkv{bucket}")[0].uri.endswith(f"/sub/%C3%BC.mkv{bucket}")


def test_a_missing_object_is_a_row_error(bucket: str) -> None:
    with pytest.raises(ClipError, match="missing"):
        open_clip(None, f"s3://bucket/missing.mp4{bucket}")
    with pytest.raises(SettingsError, match="no file is there"):
        list_clips(f"s3://bucket/nothing/*.mp4{bucket}")


def test_a_large_object_is_read_in_blocks_and_seeks(bucket: str) -> None:
    opened = open_clip(None, f"s3://bucket/clips/a%20b.mp4{bucket}", whole_read_bytes=4)
    assert not isinstance(opened, str)
    with opened:
        assert (opened.seek(-3, os.SEEK_END), opened.read(2), opened.seek(0), opened.read()) == (
            7,
            b"78",
            0,
            b"0123456789",
        )
