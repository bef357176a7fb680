"""The header `x-request-id`, in and out."""

import pytest

PATHS = {"chatcmpl": "chat", "cmpl": "complete"}


def named(name):
    return {"extra_headers": {"x-request-id": name}}


@pytest.mark.parametrize("prefix", PATHS)
def test_a_client_may_name_its_request(door, prefix):
    response = getattr(door, PATHS[prefix])(max_tokens=1, **named("mine-1"))
    assert response.id == f"{prefix}-mine-1"


@pytest.mark.parametrize("ask", PATHS.values())
def test_the_header_of_a_response_names_it(door, ask):
    response = getattr(door, ask)(max_tokens=1)
    assert response._request_id == response.id


def test_the_header_of_a_stream_names_it(door):
    with door.chat("Hi", stream=True, **named("mine-2")) as stream:
        assert stream.response.headers["x-request-id"] == "chatcmpl-mine-2"
        assert {chunk.id for chunk in stream} == {"chatcmpl-mine-2"}


@pytest.mark.parametrize("name", ["", "x" * 101], ids=len)
def test_a_name_that_is_empty_or_long_is_replaced(door, name):
    id = door.chat("Hi", max_tokens=1, **named(name)).id
    assert len(id) == len("chatcmpl-") + 32 and "xx" not in id


def test_a_name_may_be_used_again_when_its_request_has_ended(door):
    for _ in range(2):
        assert door.chat("Hi", max_tokens=1, **named("again")).id == "chatcmpl-again"


def test_a_name_in_use_is_refused(door):
    with door.chat("Tell me a story.", stream=True, max_tokens=4000, ignore_eos=True, **named("busy")) as stream:
        next(iter(stream))
        response = door.post(
            "/v1/chat/completions",
            {"model": door.model, "messages": [{"role": "user", "content": "Hi"}]},
            headers={"x-request-id": "busy"},
        )
        assert response.status_code == 409


def test_a_refusal_has_an_id_too(door):
    # OpenAI's clients show it in the error, for whoever looks into the logs.
    response = door.post("/v1/completions", {"model": door.model}, headers={"x-request-id": "mine-3"})
    assert response.status_code == 400
    assert "mine-3" in response.headers.get("x-request-id", "")
