"""Completions: prompts of every kind, their echo, and the indices of their choices."""

import pytest

from answer import gathered, whole
from door import PROMPT


def test_an_answer_has_what_openai_says_of_it(door):
    response = door.complete(max_tokens=4)
    assert response.id.startswith("cmpl-") and response.object == "text_completion"
    assert response.model == door.model
    (choice,) = response.choices
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "length", None)
    assert choice.text.startswith(" Paris")
    assert (response.usage.prompt_tokens, response.usage.completion_tokens, response.usage.total_tokens) == (5, 4, 9)


def test_an_answer_has_16_tokens_where_nothing_is_said(door):
    assert door.complete(max_tokens=None).usage.completion_tokens == 16


def test_ids_are_the_same_prompt_as_their_text(door):
    assert door.answer(door.tokenize(PROMPT)).choices == door.answer(PROMPT).choices


def test_each_text_of_a_list_is_answered_as_if_alone(door):
    prompts = [PROMPT, "Once upon a time", "1 2 3"]
    together = door.answer(prompts)
    assert together.texts == [door.answer(prompt).text for prompt in prompts]


def test_lists_of_ids_are_answered_like_their_texts(door):
    prompts = [PROMPT, "Once upon a time"]
    assert door.answer([door.tokenize(prompt) for prompt in prompts]).texts == door.answer(prompts).texts


def test_texts_and_ids_may_be_mixed(door):
    response = door.raw_completion(prompt=["1 2 3", door.tokenize(PROMPT)])
    assert [choice["text"] for choice in response.json()["choices"]] == door.answer(["1 2 3", PROMPT]).texts


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(door):
    prompts = [PROMPT, "Once upon a time"]
    together = door.answer(prompts, n=3, temperature=1, seed=5)
    assert sorted(together.choices) == [0, 1, 2, 3, 4, 5]
    alone = [door.answer(prompt, n=3, temperature=1, seed=5).texts for prompt in prompts]
    assert together.texts == alone[0] + alone[1]


def test_choices_of_several_prompts_stream_under_their_numbers(door):
    fields = dict(prompt=[PROMPT, "Once upon a time"], n=2, temperature=1, seed=5)
    assert door.answer(**fields, stream=True).choices == door.answer(**fields).choices


def test_usage_of_several_prompts_is_their_sum(door):
    usage = door.complete([PROMPT, "1 2 3"], n=2, max_tokens=3).usage
    assert usage.prompt_tokens == 5 + len(door.tokenize("1 2 3"))
    assert usage.completion_tokens == 2 * 2 * 3


def test_best_of_as_many_as_are_wanted_is_what_comes(door):
    fields = dict(n=2, temperature=1, seed=5)
    assert door.answer(best_of=2, **fields).choices == door.answer(**fields).choices


def test_best_of_more_is_refused(door):
    error = door.raw_completion(best_of=3).json()["error"]
    assert (error["param"], error["code"]) == ("best_of", "unsupported_parameter")


def test_a_suffix_is_refused(door):
    response = door.raw_completion(suffix="!")
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "suffix"


def test_an_echo_is_the_prompt_and_the_answer(door):
    assert door.answer(echo=True).text == PROMPT + door.answer().text


def test_an_echo_of_ids_is_their_text(door):
    assert door.answer(door.tokenize(PROMPT), echo=True).text == PROMPT + door.answer().text


def test_every_choice_echoes_its_own_prompt(door):
    echoed = door.answer([PROMPT, "1 2 3"], n=2, echo=True).texts
    assert all(text.startswith(PROMPT) for text in echoed[:2])
    assert all(text.startswith("1 2 3") for text in echoed[2:])


def test_an_echo_keeps_the_prompt_as_it_was_written(door):
    prompt = "Zo\u0308e\u00e9 🙂 \u05e9\u05dc\u05d5\u05dd  <|im_start|>"
    assert door.answer(prompt, echo=True, max_tokens=1).text.startswith(prompt)


def test_an_echo_alone_is_possible(door):
    response = door.complete(echo=True, max_tokens=0)
    assert response.choices[0].text == PROMPT
    assert (response.choices[0].finish_reason, response.usage.completion_tokens) == ("length", 0)


def test_an_echo_alone_is_possible_for_several_choices(door):
    # Useless, but OpenAI and vLLM take it.
    assert door.answer(echo=True, max_tokens=0, n=2).texts == [PROMPT, PROMPT]


@pytest.mark.parametrize("fields", [{}, {"logprobs": 2}, {"logprobs": 0, "max_tokens": 0}, {"n": 2}], ids=str)
def test_an_echo_streams_as_it_comes_whole(door, fields):
    assert door.answer(echo=True, stream=True, **fields).choices == door.answer(echo=True, **fields).choices


def test_pieces_of_a_stream_are_text_completions(door):
    chunks = list(door.complete(stream=True))
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


def test_special_tokens_in_a_text_are_parsed(door):
    assert door.complete("<|im_start|>", max_tokens=1).usage.prompt_tokens == 1


def test_the_stream_of_the_client_closes_cleanly(door):
    with door.complete(stream=True) as stream:
        assert gathered(stream).text == whole(door.complete()).text
