"""Keys, origins, request ids, limits, health, metrics, and the list of routes."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

from kvern import __version__
from kvern.server.app import ROUTES
from kvern.server.gate import OPEN_PATHS
from kvern.server.options import Limits

KEY = {"authorization": "Bearer sesame"}
WRONG_KEYS: tuple[dict[str, str], ...] = (
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "Basic sesame"},
    {"authorization": "sesame"},
    {"authorization": "Bearer"},
    {"authorization": "Bearer sesame2"},
    {"x-api-key": "sesame"},
)
NO_KEY_NEEDED = {"/health", "/livez", "/readyz"}
KEY_NEEDED = {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/models/{name:path}",
    "/v1/limits",
    "/tokenize",
    "/detokenize",
    "/ping",
    "/metrics",
    "/version",
}


def test_every_route_has_a_known_auth_class() -> None:
    """A new route must be added to one of the two lists above, on purpose."""
    assert {spec.path for spec in ROUTES} == NO_KEY_NEEDED | KEY_NEEDED
    assert OPEN_PATHS == NO_KEY_NEEDED


def test_the_application_has_no_routes_beside_the_table(server: Any) -> None:
    assert {route.path for route in server.app.routes} == {spec.path for spec in ROUTES}


def test_keys_guard_every_route_but_the_three(serve: Any) -> None:
    with serve(api_keys=("sesame", "other")) as one, httpx.Client(base_url=one.url) as http:
        for spec in ROUTES:
            path = spec.path.replace("{name:path}", "demo")
            answer = http.request(spec.method, path)
            if spec.path in NO_KEY_NEEDED:
                assert answer.status_code == 200
                continue
            for headers in WRONG_KEYS:
                answer = http.request(spec.method, path, headers=headers)
                assert answer.status_code == 401, path
                assert answer.json()["error"]["type"] == "authentication_error"
                assert answer.json()["error"]["code"] == "invalid_api_key"
                assert answer.headers["www-authenticate"] == "Bearer"
            assert http.request(spec.method, path, headers=KEY).status_code != 401
        assert http.get("/v1/models", headers={"authorization": "bearer other"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/health/", "//health", "/HEALTH", "/v1/models/../../health", "/health%2f"]
)
def test_unknown_paths_need_a_key_too(serve: Any, path: str) -> None:
    with serve(api_keys=("sesame",)) as one:
        connection = socket.create_connection(("127.0.0.1", one.port))
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n".encode())
        assert connection.makefile("rb").readline() == b"HTTP/1.1 401 Unauthorized\r\n"
        connection.close()


def test_unknown_paths_and_methods_have_error_bodies(server: Any) -> None:
    answer = httpx.get(server.url + "/nothing")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
    answer = httpx.get(server.url + "/v1/completions")
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")
    assert httpx.delete(server.url + "/v1/models/demo").status_code == 405


def test_request_ids_are_echoed_as_harmless_labels(server: Any) -> None:
    def echoed(given: str | None) -> str:
        headers = {} if given is None else {"x-request-id": given}
        return httpx.get(server.url + "/livez", headers=headers).headers["x-request-id"]

    assert echoed("my-id_7.a:b") == "my-id_7.a:b"
    assert echoed("a b<c>") == "a_b_c_"
    assert echoed("x" * 1000) == "x" * 128
    assert echoed(None) != echoed(None)


def test_web_pages_of_other_origins_are_refused(serve: Any) -> None:
    with serve(allowed_origins=("https://ui.example",)) as one:

        def status(origin: str, **headers: str) -> int:
            return httpx.get(one.url + "/v1/models", headers={"origin": origin, **headers}).status_code

        assert status("https://evil.example") == 403
        assert status("null") == 403
        assert status("https://ui.example") == 200
        assert status(one.url) == 200
        assert status(f"http://localhost:{one.port}", host=f"localhost:{one.port}") == 200
        assert status(f"http://rebound.example:{one.port}", host=f"rebound.example:{one.port}") == 403
        assert status("http://[broken", host="[broken") == 403


def test_only_json_bodies_are_read(server: Any) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        answer = httpx.post(server.url + "/v1/completions", content=b"{}", headers={"content-type": kind})
        assert answer.status_code == 415
    answer = httpx.post(
        server.url + "/tokenize",
        content=b'{"prompt": "x"}',
        headers={"content-type": "application/json; charset=utf-8"},
    )
    assert answer.status_code == 200


BROKEN = [
    b"",
    b"{",
    b"nothing",
    b"[" * 100_000,
    b'{"prompt": ' + b"[" * 50_000,
    b"\xff\xfe",
    b'{"a": NaN}',
    b'{"prompt": "\xed\xa0\x80"}',
]


@pytest.mark.parametrize("content", BROKEN)
def test_broken_json_is_a_client_error(server: Any, content: bytes) -> None:
    answer = httpx.post(server.url + "/v1/completions", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_large_bodies_are_refused_early(serve: Any) -> None:
    with serve(limits=Limits(body_bytes=1000)) as one:
        answer = httpx.post(one.url + "/tokenize", json={"prompt": "x" * 2000})
        assert answer.status_code == 413
        assert "1000" in answer.json()["error"]["message"]

        def chunks() -> Any:  # no content-length
            yield b'{"prompt": "'
            for _ in range(100):
                yield b"x" * 100

        answer = httpx.post(one.url + "/tokenize", content=chunks(), headers={"content-type": "application/json"})
        assert answer.status_code == 413


def test_a_body_that_never_ends_is_given_up(serve: Any) -> None:
    with (
        serve(limits=Limits(body_seconds=0.05)) as one,
        socket.create_connection(("127.0.0.1", one.port)) as connection,
    ):
        connection.settimeout(20)
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 99\r\n\r\n{"
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_texts_that_cannot_fit_are_refused_unread(serve: Any) -> None:
    with serve(limits=Limits(tokenize_chars=5000)) as one:
        long = "a" * 5001
        answer = httpx.post(one.url + "/tokenize", json={"prompt": long}).json()
        assert "5000" in answer["error"]["message"]
        for path, body in (
            ("/v1/completions", {"prompt": long * 2}),
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": long * 2}]}),
        ):
            detail = httpx.post(one.url + path, json=body).json()["error"]
            assert detail["code"] == "context_length_exceeded"
            assert detail["param"] in body
            assert "511 tokens" in detail["message"]


def _flood(port: int, part: bytes) -> None:
    """Send a request head that does not end."""
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.settimeout(20)
        connection.sendall(b"GET /livez HTTP/1.1\r\nhost: x\r\nx-filler: ")
        for _ in range(10_000):
            connection.sendall(part)


@pytest.mark.parametrize("part", [b"a" * 1000 + b"\r\nx-filler: ", b"a" * 1000], ids=["many headers", "one header"])
def test_endless_heads_are_cut(server: Any, part: bytes) -> None:
    with pytest.raises(ConnectionError):
        _flood(server.port, part)


def test_many_requests_on_one_connection_are_not_taken_for_one_long_head(server: Any) -> None:
    with httpx.Client(base_url=server.url, headers={"x-filler": "a" * 4000}) as http:
        for _ in range(40):
            assert http.get("/livez").status_code == 200
        assert http.post("/tokenize", json={"prompt": "x" * 200_000}).json()["count"] == 200_000


def test_health_follows_the_engine(server: Any) -> None:
    def statuses() -> list[int]:
        return [httpx.get(server.url + path).status_code for path in ("/livez", "/readyz", "/health", "/ping")]

    assert statuses() == [200, 200, 200, 200]
    server.engine.is_alive = False
    try:
        assert statuses() == [200, 503, 503, 503]
        assert "vllm:num_requests_running" not in httpx.get(server.url + "/metrics").text
    finally:
        server.engine.is_alive = True
    assert httpx.get(server.url + "/health").content == b""


def test_models_and_version(server: Any) -> None:
    listed = httpx.get(server.url + "/v1/models").json()
    assert [card["id"] for card in listed["data"]] == ["demo", "alias"]
    assert listed["data"][0]["max_model_len"] == server.engine.info.max_context
    assert httpx.get(server.url + "/v1/models/alias").json()["id"] == "alias"
    assert httpx.get(server.url + "/v1/models/org/other").json()["error"]["code"] == "model_not_found"
    assert httpx.get(server.url + "/version").json() == {"version": __version__}
    assert httpx.get(server.url + "/v1/limits").json()["n"] == 16


def test_openai_client_lists_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["demo", "alias"]
    assert client.models.retrieve("demo").id == "demo"


def test_metrics_count_what_happened(serve: Any) -> None:
    with serve() as one:
        post = {"model": "demo", "prompt": "burst xyz", "max_tokens": 20, "stop": "st"}
        httpx.post(one.url + "/v1/completions", json=post)
        httpx.post(one.url + "/v1/completions", json={"model": "demo", "prompt": "xyz", "max_tokens": 4})
        httpx.get(one.url + "/no/such/path")
        text = httpx.get(one.url + "/metrics").text
        labels = '{engine="0",model_name="demo"}'
        assert f"vllm:time_to_first_token_seconds_count{labels} 2.0" in text
        assert f"vllm:request_prompt_tokens_sum{labels} 12.0" in text
        assert f"vllm:request_generation_tokens_sum{labels} 9.0" in text
        assert f"vllm:prompt_tokens_total{labels} 7.0" in text
        assert f"vllm:kv_cache_usage_perc{labels} 0.02" in text
        assert f"kvern:discarded_tokens_total{labels} 1.0" in text
        assert 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="demo"} 1.0' in text
        assert 'kvern:http_responses_total{route="/v1/completions",status="200"} 2.0' in text
        assert 'kvern:http_responses_total{route="other",status="404"} 1.0' in text


def test_tokenize_and_detokenize(server: Any) -> None:
    def post(path: str, body: Any) -> Any:
        return httpx.post(server.url + path, json=body).json()

    seen = post("/tokenize", {"prompt": "ab c\u00e9<|im_end|>", "return_token_strs": True})
    assert seen["count"] == len(seen["tokens"]) == 6
    assert seen["tokens"][-1] == 258
    assert seen["token_strs"][:3] == ["ab", "\u0120", "c"]
    assert seen["max_model_len"] == 512
    assert post("/detokenize", {"tokens": seen["tokens"]}) == {"prompt": "ab c\u00e9<|im_end|>"}
    chat = post("/tokenize", {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": False})
    assert post("/detokenize", {"tokens": chat["tokens"]}) == {"prompt": "<|im_start|>user\nx<|im_end|>\n"}


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "x", "messages": []}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"prompt": "x", "other": 1}, "other"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [259]}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": ["x"]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1], "model": "no"}, "model"),
    ],
)
def test_bad_token_requests_name_the_field(server: Any, path: str, body: Any, param: str) -> None:
    answer = httpx.post(server.url + path, json=body)
    assert 400 <= answer.status_code < 500
    assert answer.json()["error"]["param"] == param


def test_lone_surrogates_are_refused_by_field(server: Any) -> None:
    for path, body, param in (
        ("/tokenize", '{"prompt": "a\\ud800"}', "prompt"),
        ("/v1/completions", '{"prompt": "a\\udfff"}', "prompt"),
        ("/v1/completions", '{"prompt": "a", "stop": "\\ud800"}', "stop"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": "\\ud83d"}]}', "messages[0].content"),
    ):
        answer = httpx.post(server.url + path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400, body
        detail = answer.json()["error"]
        assert detail["param"] == param, json.dumps(detail)
        assert "surrogate" in detail["message"]
