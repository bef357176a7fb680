"""Refusals: the status, the code and the field that OpenAI's clients read, and that nothing was computed."""

import openai
import pytest

LONG = "a " * 9000


def error_of(response, status=400):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    return error


def test_an_unknown_model_is_not_found(door):
    with pytest.raises(openai.NotFoundError) as caught:
        door.chat("Hi", model="gpt-none")
    error = caught.value
    assert (error.status_code, error.code, error.param) == (404, "model_not_found", "model")
    assert "gpt-none" in error.message


@pytest.mark.parametrize("ask", ["raw_chat", "raw_completion"])
def test_a_request_names_its_model(door, ask):
    error = error_of(getattr(door, ask)(model=None))
    assert (error["param"], error["code"]) == ("model", "missing_required_parameter")


@pytest.mark.parametrize("ask", ["raw_chat", "raw_completion"])
def test_an_unknown_field_is_refused_by_name(door, ask):
    error = error_of(getattr(door, ask)(tempratuer=0.5))
    assert (error["param"], error["code"], error["type"]) == (
        "tempratuer",
        "unknown_parameter",
        "invalid_request_error",
    )


def test_unknown_fields_of_a_chat_are_not_those_of_a_completion(door):
    assert error_of(door.raw_completion(messages=[]))["param"] == "messages"
    assert error_of(door.raw_chat(prompt="Hi"))["param"] == "prompt"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"messages": [{"role": "user", "content": "Hi", "mood": "good"}]}, "messages[0].mood"),
        ({"stream": True, "stream_options": {"include_all": True}}, "stream_options.include_all"),
    ],
)
def test_an_unknown_field_within_another_is_refused_by_its_path(door, fields, param):
    error = error_of(door.raw_chat(**fields))
    assert (error["param"], error["code"]) == (param, "unknown_parameter")


WRONG_TYPES = {
    "model": 3,
    "messages": "Hi",
    "max_tokens": "8",
    "max_completion_tokens": 1.5,
    "temperature": "hot",
    "top_p": True,
    "top_k": 1.5,
    "min_p": [],
    "repetition_penalty": "1",
    "presence_penalty": {},
    "frequency_penalty": "0",
    "logit_bias": [],
    "seed": 1.5,
    "n": "2",
    "stop": [1],
    "stream": "yes",
    "logprobs": 1,
    "top_logprobs": "3",
    "user": 3,
    "tools": {},
    "ignore_eos": 1,
    "stop_token_ids": [-1],
    "return_token_ids": "yes",
    "priority": "high",
}


@pytest.mark.parametrize("field", WRONG_TYPES)
def test_a_wrong_type_is_refused_with_its_field(door, field):
    error = error_of(door.raw_chat(**{field: WRONG_TYPES[field]}))
    assert (error["param"], error["code"]) == (field, "invalid_type")


OUT_OF_RANGE = [
    ("temperature", -0.1),
    ("temperature", 101),
    ("temperature", 1e300),
    ("top_p", 0),
    ("top_p", 1.1),
    ("top_k", -2),
    ("min_p", -0.1),
    ("min_p", 1.1),
    ("repetition_penalty", 0),
    ("presence_penalty", 2.1),
    ("frequency_penalty", -2.1),
    ("logit_bias", {"1": 101}),
    ("logit_bias", {"99999": 1}),
    ("logit_bias", {"a": 1}),
    ("n", 0),
    ("n", 129),
    ("max_tokens", 0),
    ("max_tokens", -1),
    ("stop", [""]),
    ("stop", ["a"] * 17),
    ("stop", "a" * 1025),
    ("stop_token_ids", [99999]),
    ("user", "u" * 129),
    ("priority", 2**40),
    ("messages", []),
]


@pytest.mark.parametrize("field, value", OUT_OF_RANGE, ids=lambda one: str(one)[:20])
def test_a_value_out_of_range_is_refused_with_its_field(door, field, value):
    assert error_of(door.raw_chat(**{field: value}))["param"] == field


def test_a_seed_has_64_bits(door):
    assert error_of(door.raw_chat(seed=2**64))["param"] == "seed"


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
        ({"messages": ["Hi"]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type"),
    ],
    ids=lambda one: str(one)[:50],
)
def test_what_is_wrong_in_a_chat_is_named(door, fields, param):
    assert error_of(door.raw_chat(**fields))["param"] == param


@pytest.mark.parametrize(
    "fields, param",
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": [99999]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [1.5]}, "prompt"),
        ({"prompt": ["a", 1]}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": ["a"] * 257}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"echo": "yes"}, "echo"),
        ({"max_completion_tokens": 3}, "max_completion_tokens"),
    ],
    ids=lambda one: str(one)[:30],
)
def test_what_is_wrong_in_a_completion_is_named(door, fields, param):
    assert error_of(door.raw_completion(**fields))["param"] == param


@pytest.mark.parametrize(
    "field, value",
    [
        ("audio", {"voice": "x", "format": "mp3"}),
        ("modalities", ["text", "audio"]),
        ("prediction", {"type": "content", "content": "x"}),
        ("reasoning_effort", "low"),
        ("service_tier", "priority"),
        ("web_search_options", {}),
        ("functions", []),
        ("function_call", "auto"),
    ],
)
def test_what_the_model_cannot_do_is_refused_by_name(door, field, value):
    error = error_of(door.raw_chat(**{field: value}))
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")


@pytest.mark.parametrize("fields", [{"prompt": LONG}, {"max_tokens": 9000}], ids=["prompt", "answer"])
def test_too_many_tokens_are_refused(door, fields):
    with pytest.raises(openai.BadRequestError) as caught:
        door.complete(**fields)
    assert caught.value.code == "context_length_exceeded"
    assert "8192" in caught.value.message


def test_a_chat_that_is_too_long_is_refused(door):
    with pytest.raises(openai.BadRequestError) as caught:
        door.chat(LONG, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_one_bad_prompt_of_several_refuses_all(door, rpc):
    error_of(door.raw_completion(prompt=["Hi", ""], max_tokens=2000))
    # The good one was begun: it must not go on for nobody.
    rpc.await_idle()


def test_what_is_refused_is_not_computed(door, rpc):
    rpc.await_idle()
    before = rpc.counters()["submitted"]
    door.raw_chat(temperature=-1)
    door.raw_completion(prompt=LONG)
    assert rpc.counters()["submitted"] == before
