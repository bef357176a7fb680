"""HTTP itself: paths, methods, bodies that are no requests, and that a connection outlives them."""

import http.client

import httpx
import pytest

from door import Door


TOO_LARGE = b'{"prompt": "' + b"a" * (9 << 20) + b'"}'


def post(door, content, path="/v1/completions", **options):
    return door.http.post(path, content=content, **options)


@pytest.mark.parametrize("path", ["/page", "/v1", "/v1/embeddings", "/v1/chat", "/v2/completions", "/v1/completions/"])
def test_an_unknown_path_is_not_found(door, path):
    response = door.post(path, {})
    assert response.status_code == 404
    assert path in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("GET", "/v1/chat/completions", "POST"),
        ("GET", "/v1/completions", "POST"),
        ("DELETE", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PUT", "/tokenize", "POST"),
        ("POST", "/health", "GET"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(door, method, path, allowed):
    response = door.http.request(method, path)
    assert response.status_code == 405
    assert response.json()["error"]["code"] == "method_not_allowed"
    assert allowed in response.headers["allow"]


BODIES = {
    "nothing": b"",
    "half": b'{"model": "x", ',
    "not a value": b"{]",
    "bytes": b"\xff\xfe",
    "a list": b"[]",
    "a text": b'"x"',
    "too deep": b"[" * 10_000,
    "not a number": b'{"model": "x", "temperature": NaN}',
    "bad characters": b'{"model": "\xff"}',
    "half a character": b'{"model": "\\ud800"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_what_is_no_json_object_is_refused(door, body):
    response = post(door, body)
    assert response.status_code == 400
    assert response.json()["error"]["type"] == "invalid_request_error"


def test_a_body_may_come_in_chunks(door):
    body = b'{"model": "%s", "prompt": "Hi", "max_tokens": 1}' % door.model.encode()
    response = post(door, (bytes([byte]) for byte in body))
    assert response.status_code == 200


def test_a_body_that_is_too_large_is_refused(cluster):
    # Its own client: the server may close the connection.
    with httpx.Client(base_url=cluster.http) as client:
        response = client.post("/v1/completions", content=TOO_LARGE)
    assert response.status_code == 413
    assert response.json()["error"]["code"] == "request_too_large"


def test_a_connection_that_is_closed_after_a_refusal_was_said_to_be(cluster):
    # Else a client sends its next request into it, and sees a broken connection.
    connection = http.client.HTTPConnection(cluster.http.removeprefix("http://"))
    connection.request("POST", "/v1/completions", TOO_LARGE)
    response = connection.getresponse()
    assert response.status == 413 and response.read()
    if not response.will_close:
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 200
    connection.close()


def test_a_connection_outlives_refusals(cluster):
    door = Door(cluster.http)
    for _ in range(3):
        assert door.raw_chat(temperature=-1).status_code == 400
        assert post(door, b"{").status_code == 400
    assert door.raw_chat().status_code == 200
    assert len(door.http._transport._pool.connections) == 1
    door.close()


def test_keys_and_other_headers_are_no_matter(door):
    headers = {"authorization": "Bearer sk-x", "openai-organization": "o"}
    response = door.post("/tokenize", {"prompt": "a"}, headers=headers)
    assert response.status_code == 200


def test_too_large_headers_are_refused(cluster):
    with httpx.Client(base_url=cluster.http) as client:
        assert client.get("/v1/models", headers={"x-large": "a" * 100_000}).status_code == 431


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "text/plain", ""])
def test_a_body_is_json_whatever_it_is_called(door, content_type):
    body = b'{"model": "%s", "prompt": "Hi", "max_tokens": 1}' % door.model.encode()
    assert post(door, body, headers={"content-type": content_type}).status_code == 200
