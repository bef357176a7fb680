"""Streams: their pieces add up to what comes whole, and they end as OpenAI's do."""

import json

import pytest

LONG = "The quick brown fox jumps over the lazy dog. " * 20
CHATS = {
    "plain": {},
    "n": {"n": 3, "temperature": 1, "seed": 3},
    "logprobs": {"logprobs": True, "top_logprobs": 2},
    "ids": {"return_token_ids": True},
    "stop": {"stop": "can", "max_tokens": 16},
    "end": {"max_tokens": None},
    "emoji": {"messages": "Repeat after me: 🙂👍🏽👩‍👩‍👧 \u05e9\u05dc\u05d5\u05dd", "max_tokens": 24},
    "all": {"n": 2, "logprobs": True, "stop": ["x", "y"], "return_token_ids": True, "temperature": 1, "seed": 9},
}


@pytest.mark.parametrize("fields", CHATS.values(), ids=CHATS.keys())
def test_pieces_of_a_chat_add_up(door, fields):
    streamed, whole = door.chat_answer(stream=True, **fields), door.chat_answer(**fields)
    assert streamed.choices == whole.choices
    assert streamed.fingerprint == whole.fingerprint


COMPLETIONS = {
    "plain": {},
    "n": {"n": 3, "temperature": 1, "seed": 3},
    "logprobs": {"logprobs": 2},
    "ids": {"return_token_ids": True},
    "several": {"prompt": ["a", "b", "c d"], "n": 2, "temperature": 1, "seed": 1},
    "echo": {"echo": True, "logprobs": 1, "n": 2},
    "all": {"prompt": ["a", "b"], "n": 2, "echo": True, "logprobs": 3, "stop": [" "], "return_token_ids": True},
}


@pytest.mark.parametrize("fields", COMPLETIONS.values(), ids=COMPLETIONS.keys())
def test_pieces_of_a_completion_add_up(door, fields):
    assert door.answer(stream=True, **fields).choices == door.answer(**fields).choices


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_usage_comes_last_where_it_is_wanted(door, ask):
    ask = getattr(door, ask)
    chunks = list(ask(stream=True, stream_options={"include_usage": True}))
    assert all(chunk.usage is None and chunk.choices for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert chunks[-1].usage.model_dump() == ask().usage.model_dump()


def test_usage_of_several_prompts_and_choices_is_their_sum_in_a_stream_too(door):
    fields = dict(prompt=["a b", "c"], n=3, temperature=1, seed=1)
    streamed = door.answer(stream=True, stream_options={"include_usage": True}, **fields)
    assert streamed.usage == door.answer(**fields).usage


@pytest.mark.parametrize("ask", ["chat", "complete"])
def test_usage_does_not_come_where_it_is_not_wanted(door, ask):
    assert all(chunk.usage is None for chunk in getattr(door, ask)(stream=True))


def test_usage_so_far_comes_with_every_piece_where_it_is_wanted(door):
    options = {"include_usage": True, "continuous_usage_stats": True}
    usages = [chunk.usage.completion_tokens for chunk in door.complete(stream=True, stream_options=options)]
    assert usages == sorted(usages) and usages[-1] == 8


def test_a_prompt_that_was_computed_before_is_cached(door, rpc):
    fields = dict(prompt=LONG, max_tokens=1, user="cached")
    first = door.answer(**fields).usage
    rpc.await_settled()
    second = door.answer(**fields).usage
    assert first["prompt_tokens_details"]["cached_tokens"] == 0
    assert 0 < second["prompt_tokens_details"]["cached_tokens"] < second["prompt_tokens"]


def test_a_stream_tells_of_cached_tokens_too(door, rpc):
    fields = dict(prompt=LONG, max_tokens=1, user="cached in a stream")
    door.answer(**fields)
    rpc.await_settled()
    streamed = door.answer(stream=True, stream_options={"include_usage": True}, **fields)
    assert streamed.usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_users_do_not_share_what_is_cached(door):
    answers = [door.answer(LONG, max_tokens=4, user=user) for user in ("ann", "bob")]
    assert answers[0].choices == answers[1].choices
    assert [answer.usage["prompt_tokens_details"]["cached_tokens"] for answer in answers] == [0, 0]


def test_what_is_cached_changes_no_answer(door, rpc):
    fields = dict(prompt=LONG, max_tokens=4, user="same bits", logprobs=5)
    computed = door.answer(**fields)
    rpc.await_settled()
    found = door.answer(**fields)
    assert found.choices == computed.choices
    assert found.usage["prompt_tokens_details"]["cached_tokens"] > 0


def test_a_stream_is_events_of_json_and_ends_with_done(door):
    response = door.raw_completion(stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.text.endswith("data: [DONE]\n\n")
    lines = [line for line in response.text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    assert all(json.loads(line.removeprefix("data: "))["choices"] for line in lines[:-1])


def test_obfuscation_may_be_turned_off(door):
    assert door.answer(stream=True, stream_options={"include_obfuscation": False}).text == door.answer().text


def test_a_request_that_is_refused_is_no_stream(door):
    response = door.raw_completion(stream=True, temperature=-1)
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/json"


def test_options_of_a_stream_are_refused_without_one(door):
    response = door.raw_chat(stream_options={"include_usage": True})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "stream_options"


def test_pieces_of_a_chat_are_chunks_with_every_field(door):
    response = door.raw_chat(stream=True)
    first = json.loads(response.text.split("\n")[0].removeprefix("data: "))
    assert first.keys() >= {"id", "object", "created", "model", "system_fingerprint", "choices"}
    assert first["choices"][0].keys() >= {"index", "delta", "finish_reason"}
