"""Chats: what a request may say, and what its answer has."""

import time

import pytest

from answer import gathered

SYSTEM = {"role": "system", "content": "You are a pirate."}
USER = {"role": "user", "content": "Hi"}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}


def prompt(door, messages, **fields):
    """The tokens that the template makes of these messages."""
    response = door.post("/tokenize", {"messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()["tokens"]


def test_an_answer_has_what_openai_says_of_it(door):
    before = int(time.time())
    response = door.chat("Hi", max_tokens=4)
    assert response.id.startswith("chatcmpl-") and response.object == "chat.completion"
    assert response.model == door.model
    assert before - 1 <= response.created <= time.time() + 1
    (choice,) = response.choices
    assert choice.index == 0 and choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason == "length" and choice.logprobs is None
    assert choice.message.refusal is None and not choice.message.tool_calls


def test_usage_counts_the_tokens_of_prompt_and_answer(door):
    usage = door.chat("Hi", max_tokens=4).usage
    assert usage.prompt_tokens == len(prompt(door, [USER]))
    assert usage.completion_tokens == 4
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_ids_of_responses_differ(door):
    assert door.chat("Hi", max_tokens=1).id != door.chat("Hi", max_tokens=1).id


def test_max_completion_tokens_bounds_the_answer(door):
    response = door.chat("Hi", max_completion_tokens=3)
    assert response.usage.completion_tokens == 3 and response.choices[0].finish_reason == "length"


def test_the_newer_name_of_max_tokens_wins(door):
    response = door.chat("Hi", max_tokens=5, max_completion_tokens=2)
    assert response.usage.completion_tokens == 2


def test_without_a_bound_the_answer_ends_by_itself(door):
    response = door.chat("Hi", max_tokens=None)
    assert response.choices[0].finish_reason == "stop"
    assert response.usage.completion_tokens > 4


def test_parts_of_text_are_one_text(door):
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "a fjord?"}]
    joined = door.chat_answer("What is\na fjord?")
    assert door.chat_answer([{"role": "user", "content": parts}]).choices == joined.choices


def test_a_system_message_reaches_the_prompt(door):
    text = door.detokenize(prompt(door, [SYSTEM, USER]))
    assert text.startswith("<|im_start|>system\nYou are a pirate.<|im_end|>")
    with_system, without = door.chat("Hi", max_tokens=1).usage, door.chat([SYSTEM, USER], max_tokens=1).usage
    assert with_system.prompt_tokens != without.prompt_tokens


def test_a_developer_is_the_system(door):
    developer = {"role": "developer", "content": SYSTEM["content"]}
    assert prompt(door, [developer, USER]) == prompt(door, [SYSTEM, USER])


def test_a_conversation_goes_on(door):
    said = door.chat("Hi", max_tokens=None).choices[0].message
    # As the client's documentation shows it: the message of the answer is the next of the list.
    answer = door.chat([USER, said, {"role": "user", "content": "And you?"}], max_tokens=4)
    assert answer.usage.prompt_tokens > door.chat("Hi", max_tokens=1).usage.prompt_tokens


def test_a_conversation_goes_on_from_a_message_that_was_stored_as_a_dict(door):
    said = door.chat("Hi", max_tokens=None).choices[0].message.model_dump()
    assert door.chat([USER, said, USER], max_tokens=2).choices[0].message.content


def test_tools_results_are_part_of_the_prompt(door):
    result = {"role": "tool", "tool_call_id": "call_1", "content": "12 degrees"}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, result]
    assert "<|im_start|>tool\n12 degrees<|im_end|>" in door.detokenize(prompt(door, messages))
    assert door.chat(messages, max_tokens=2).choices[0].message.content


def test_a_message_with_calls_may_have_a_content_too(door):
    messages = [USER, {"role": "assistant", "content": "I look.", "tool_calls": [CALL]}, USER]
    assert "I look." in door.detokenize(prompt(door, messages))


def test_names_of_speakers_are_taken(door):
    assert door.chat([{**USER, "name": "ann"}], max_tokens=2).choices[0].message.content


def test_the_turn_of_the_assistant_is_opened_unless_it_is_not_wanted(door):
    opened, left = prompt(door, [USER]), prompt(door, [USER], add_generation_prompt=False)
    assert opened[: len(left)] == left
    assert door.detokenize(opened[len(left) :]) == "<|im_start|>assistant\n"
    response = door.chat([USER], add_generation_prompt=False, return_token_ids=True)
    assert response.usage.prompt_tokens == len(left)


def test_the_template_is_told_what_a_client_wants(door):
    assert door.chat([USER], chat_template_kwargs={"enable_thinking": False}).choices[0].message.content


def test_three_choices_are_three_answers(door):
    response = door.chat("Tell me a story.", n=3, temperature=1, seed=7)
    assert [choice.index for choice in response.choices] == [0, 1, 2]
    assert len({choice.message.content for choice in response.choices}) == 3
    assert response.usage.completion_tokens == 3 * 8


def test_fewer_choices_are_the_first_of_more(door):
    more = door.chat_answer("Tell me a story.", n=4, temperature=1, seed=7)
    fewer = door.chat_answer("Tell me a story.", n=2, temperature=1, seed=7)
    assert fewer.texts == more.texts[:2]


def test_the_first_piece_of_a_stream_names_the_role(door):
    chunks = list(door.chat("Hi", stream=True))
    assert chunks[0].choices[0].delta.role == "assistant" and not chunks[0].choices[0].delta.content
    assert all(chunk.choices[0].delta.role is None for chunk in chunks[1:])
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_an_answer_comes_token_by_token(door):
    answer = gathered(door.chat("Hi", stream=True, max_tokens=6))
    assert sum(1 for piece in answer.choices[0].pieces if piece) == 6


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {"a": "b"}},
        {"store": False},
        {"service_tier": "auto"},
        {"modalities": ["text"]},
        {"parallel_tool_calls": True},
        {"prompt_cache_key": "k"},
        {"safety_identifier": "s"},
        {"user": "ann"},
        {"response_format": {"type": "text"}},
        {"priority": 3},
        {"stop": None, "seed": None, "n": None, "logit_bias": None},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_fields_that_change_no_answer_are_taken(door, fields):
    assert door.chat_answer("Hi", **fields).choices == door.chat_answer("Hi").choices
