"""``hf:`` sources against a real HTTP server on this machine that behaves like the hub, well and badly."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from kvern.core.errors import ModelFileError
from kvern.weights import hub
from kvern.weights.hugging_face import Source

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "model.safetensors": bytes(range(256)) * 4000,
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ x }}",
    "modeling_evil.py": b"raise SystemExit",
    "pytorch_model.bin": b"pickle",
    "README.md": b"text",
    "original/model.safetensors": b"nested",
    ".hidden.json": b"{}",
}


class Hub:
    """What the server holds and how it behaves; ``asked`` are the requests it saw."""

    def __init__(self) -> None:
        self.files = dict(FILES)
        self.listed: dict[str, object] | None = None
        self.cut: dict[str, int] = {}  # name -> bytes after which the next answer breaks off
        self.ignores_ranges = False
        self.redirect_to: str | None = None
        self.token: str | None = None
        self.asked: list[tuple[str, str | None, str | None]] = []  # path, Range, Authorization

    def listing(self) -> dict[str, object]:
        if self.listed is not None:
            return self.listed
        return {"sha": COMMIT, "siblings": [self.sibling(name, data) for name, data in self.files.items()]}

    @staticmethod
    def sibling(name: str, data: bytes) -> dict[str, object]:
        if name.endswith((".safetensors", ".gguf")):
            return {"rfilename": name, "size": len(data),
                    "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}}  # fmt: skip
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        return {"rfilename": name, "size": len(data), "blobId": git}


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self.hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.hub.token and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self.send_error(401)
        elif self.path.startswith("/api/models/org/name/revision/"):
            self.answer(200, json.dumps(self.hub.listing()).encode())
        elif self.path.startswith(f"/org/name/resolve/{COMMIT}/"):
            self.send_content(self.path.rsplit("/", 1)[1])
        else:
            self.send_error(404)

    def send_content(self, name: str) -> None:
        if self.hub.redirect_to is not None:
            self.send_response(302)
            self.send_header("Location", self.hub.redirect_to + self.path)
            self.end_headers()
            return
        data = self.hub.files[name]
        begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        if begin and not self.hub.ignores_ranges:
            self.answer(206, data[begin:], f"bytes {begin}-{len(data) - 1}/{len(data)}")
        elif name in self.hub.cut:
            self.answer(200, data, broken_at=self.hub.cut.pop(name))
        else:
            self.answer(200, data)

    def answer(self, status: int, body: bytes, content_range: str = "", broken_at: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if content_range:
            self.send_header("Content-Range", content_range)
        self.end_headers()
        self.wfile.write(body[:broken_at])
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


def serve() -> tuple[Hub, ThreadingHTTPServer]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    return state, server


def address(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state, server = serve()
    monkeypatch.setenv("KVERN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_ENDPOINT", address(server) + "/")
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield state
    server.shutdown()
    server.server_close()


def test_only_data_is_fetched_and_every_file_from_the_commit(remote: Hub) -> None:
    seen: list[tuple[int, int]] = []
    folder = hub.pull("hf:org/name", lambda done, total: seen.append((done, total)))
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in wanted}
    assert folder == hub.cached("hf:org/name") == hub.resolve(f"hf:org/name@{COMMIT}")
    total = sum(len(FILES[name]) for name in wanted)
    assert seen[-1] == (total, total)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert all(COMMIT in path for path, _, _ in remote.asked[1:])
    assert remote.asked[0][0] == "/api/models/org/name/revision/main?blobs=true"
    assert hub.pull(f"hf:org/name@{COMMIT}") == folder


def test_a_broken_download_goes_on_where_it_stopped(remote: Hub) -> None:
    remote.cut = {"model.safetensors": 300_000}
    folder = hub.pull("hf:org/name@some/branch")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    ranges = [asked for path, asked, _ in remote.asked if path.endswith("model.safetensors")]
    assert ranges == [None, "bytes=300000-"]
    assert remote.asked[0][0].startswith("/api/models/org/name/revision/some%2Fbranch?")
    assert hub.cached("hf:org/name@some/branch") == folder


def test_a_server_without_ranges_is_asked_from_the_beginning(remote: Hub) -> None:
    remote.cut, remote.ignores_ranges = {"model.safetensors": 300_000}, True
    folder = hub.pull("hf:org/name")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_what_an_earlier_process_left_is_taken_up(remote: Hub, tmp_path: Path) -> None:
    unfinished = tmp_path / "home" / "hf" / "org--name" / f"{COMMIT}.unfinished"
    unfinished.mkdir(parents=True)
    (unfinished / "model.safetensors.part").write_bytes(FILES["model.safetensors"][:1000])
    folder = hub.pull("hf:org/name")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert ("bytes=1000-") in [asked for _, asked, _ in remote.asked]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_other_bytes_than_listed_are_refused(remote: Hub, name: str) -> None:
    remote.listed = remote.listing()
    remote.files[name] = bytes(len(FILES[name]))
    with pytest.raises(ModelFileError, match=f"{name}: arrived with the hash"):
        hub.pull("hf:org/name")
    assert hub.cached("hf:org/name") is None
    remote.files[name] = FILES[name]
    assert (hub.pull("hf:org/name") / name).read_bytes() == FILES[name]


def test_other_sizes_than_listed_are_refused(remote: Hub) -> None:
    remote.listed = remote.listing()
    remote.files["config.json"] += b" "
    with pytest.raises(ModelFileError, match="longer than"):
        hub.pull("hf:org/name")
    remote.files["config.json"] = b"{}"
    with pytest.raises(ModelFileError, match="cannot be fetched"):
        hub.pull("hf:org/name")


def test_the_token_goes_to_the_endpoint_and_to_no_other_host(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with_token, other = serve()
    try:
        remote.token, remote.redirect_to = "secret", address(other)
        with pytest.raises(ModelFileError, match="401; set HF_TOKEN"):
            hub.pull("hf:org/name")
        monkeypatch.setenv("HF_TOKEN", "secret")
        hub.pull("hf:org/name")
    finally:
        other.shutdown()
        other.server_close()
    assert {token for _, _, token in remote.asked[1:]} == {"Bearer secret"}
    assert with_token.asked
    assert {token for _, _, token in with_token.asked} == {None}


def test_offline_only_the_cache_is_used(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelFileError, match="not in the cache, and HF_HUB_OFFLINE is set"):
        hub.pull("hf:org/name")
    assert remote.asked == []
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    folder = hub.pull("hf:org/name")
    monkeypatch.setenv("HF_HUB_OFFLINE", "true")
    count = len(remote.asked)
    assert hub.pull("hf:org/name") == folder
    assert len(remote.asked) == count


def test_of_several_gguf_files_one_must_be_named(remote: Hub) -> None:
    remote.files = {"a-Q4_0.gguf": b"GGUF a", "a-Q8_0-00001-of-00002.gguf": b"1", "a-Q8_0-00002-of-00002.gguf": b"2",
                    "config.json": b"{}"}  # fmt: skip
    with pytest.raises(ModelFileError, match="several GGUF files: choose one, such as hf:org/name/a-Q4_0.gguf"):
        hub.pull("hf:org/name")
    with pytest.raises(ModelFileError, match="no file b.gguf"):
        hub.pull("hf:org/name/b.gguf")
    assert {path.name for path in hub.pull("hf:org/name/a-Q4_0.gguf").iterdir()} == {"a-Q4_0.gguf", "config.json"}
    parts = hub.pull("hf:org/name/a-Q8_0-00001-of-00002.gguf")
    assert {path.name for path in parts.iterdir()} == {
        "a-Q8_0-00001-of-00002.gguf", "a-Q8_0-00002-of-00002.gguf", "config.json",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({}, "cannot be read"),
        ({"sha": COMMIT, "siblings": [{"rfilename": "a.json"}]}, "cannot be read"),
        ({"sha": COMMIT, "siblings": [{"rfilename": "a.json", "size": -1}]}, "cannot be read"),
        ({"sha": "../../x", "siblings": []}, "names no commit"),
        ({"sha": COMMIT, "siblings": [{"rfilename": "../a.safetensors", "size": 1}]}, "neither safetensors nor GGUF"),
        ({"sha": COMMIT, "siblings": [{"rfilename": "model.bin", "size": 1}]}, "neither safetensors nor GGUF"),
    ],
)
def test_hostile_listings_are_refused(remote: Hub, listed: dict[str, object], message: str) -> None:
    remote.listed = listed
    with pytest.raises(ModelFileError, match=message):
        hub.pull("hf:org/name")


def test_a_commit_must_be_answered_with_itself(remote: Hub) -> None:
    with pytest.raises(ModelFileError, match="asked for commit"):
        hub.pull(f"hf:org/name@{'f' * 40}")


def test_absent_repositories_are_named(remote: Hub) -> None:
    with pytest.raises(ModelFileError, match="404; check the name and the revision"):
        hub.pull("hf:org/other")


@pytest.mark.parametrize(
    "text", ["hf:", "hf:name", "hf:a/b/c", "hf:../b", "hf:a/../b", "hf:a/b@", "hf:a/b@../x", "hf:a/b\n"]
)
def test_malformed_sources_are_refused(text: str) -> None:
    with pytest.raises(ModelFileError, match="is not hf:ORG/NAME"):
        Source.parse(text)


def test_an_endpoint_must_speak_http(remote: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc")
    with pytest.raises(ModelFileError, match="not an http or https address"):
        hub.pull("hf:org/name")
