"""What ends an answer: stop strings, stop tokens, the model's own end."""

import pytest

from door import PROMPT

END = 2
FIELDS = dict(max_tokens=12, return_token_ids=True)


@pytest.fixture(scope="module")
def plain(door):
    """The answer that nothing stops."""
    return door.answer(**FIELDS).choices[0]


def test_a_stop_string_ends_an_answer_and_is_not_part_of_it(door, plain):
    choice = door.answer(stop=".", **FIELDS).choices[0]
    assert choice.text == plain.text[: plain.text.index(".")]
    assert choice.finish_reason == "stop"


def test_a_list_of_stops_ends_at_the_first_that_comes(door, plain):
    choice = door.answer(stop=["United", "\n\n", "never"], **FIELDS).choices[0]
    assert choice.text == plain.text[: plain.text.index("\n\n")]


@pytest.mark.parametrize("first, last", [(0, 2), (1, 4), (2, 5)])
def test_a_stop_string_across_tokens_is_found(door, plain, first, last):
    # From the middle of one token's text to the middle of another's.
    texts = [door.detokenize([token]) for token in plain.token_ids]
    begin = sum(map(len, texts[:first])) + len(texts[first]) // 2
    end = sum(map(len, texts[: last - 1])) + (len(texts[last - 1]) + 1) // 2
    stop = plain.text[begin:end]
    assert stop and plain.text.index(stop) <= begin
    choice = door.answer(stop=stop, **FIELDS).choices[0]
    assert choice.text == plain.text[: plain.text.index(stop)]
    assert choice.finish_reason == "stop"


def test_a_stop_string_within_a_token_cuts_its_text(door):
    assert door.answer(stop="ari", **FIELDS).text == " P"


def test_a_stop_string_in_the_prompt_does_not_count(door, plain):
    assert door.answer(stop="capital", **FIELDS).choices[0] == plain


def test_a_stop_that_never_comes_changes_nothing(door, plain):
    choice = door.answer(stop=["never this", "nor that"], **FIELDS).choices[0]
    assert choice == plain


@pytest.mark.parametrize("stop", [[], None])
def test_no_stops_change_nothing(door, plain, stop):
    assert door.answer(stop=stop, **FIELDS).choices[0] == plain


def test_what_could_become_a_stop_is_held_back(door, plain):
    stop = plain.text[:6] + "no more"
    streamed = door.answer(stop=stop, stream=True, **FIELDS).choices[0]
    assert streamed == plain
    assert next(piece for piece in streamed.pieces if piece).startswith(plain.text[:6])


@pytest.mark.parametrize("stop", [".", "\n\nThe", ["United", " States"], "aris"], ids=repr)
def test_stopped_answers_stream_as_they_come_whole(door, stop):
    assert door.answer(stop=stop, stream=True, **FIELDS).choices == door.answer(stop=stop, **FIELDS).choices


def test_a_stopped_answer_counts_the_tokens_up_to_the_stop(door, plain):
    response = door.complete(stop="\n\n", **FIELDS)
    assert response.usage.completion_tokens == len(response.choices[0].token_ids) < len(plain.token_ids)


def test_each_choice_stops_by_itself(door):
    fields = dict(n=4, temperature=1, seed=2, max_tokens=16)
    free, stopped = door.answer(**fields), door.answer(stop=" the", **fields)
    assert stopped.texts == [text.split(" the")[0] for text in free.texts]
    assert {choice.finish_reason for choice in stopped.choices.values()} == {"stop", "length"}


def test_a_chat_stops_too(door):
    assert door.chat_answer("Hi", stop="!").text == "Hello"


def test_a_stop_token_ends_an_answer_and_is_part_of_it(door, plain):
    stop = plain.token_ids[1]
    choice = door.answer(stop_token_ids=[stop], **FIELDS).choices[0]
    assert choice.token_ids == plain.token_ids[:2]
    assert choice.text == door.detokenize(plain.token_ids[:2])
    assert choice.finish_reason == "stop"


def test_the_models_own_end_ends_an_answer_without_a_text(door):
    answer = door.answer(logit_bias={str(END): 100}, **FIELDS)
    choice = answer.choices[0]
    assert (choice.text, choice.finish_reason, choice.token_ids) == ("", "stop", [END])


def test_the_models_own_end_can_be_ignored(door):
    choice = door.answer(logit_bias={str(END): 100}, ignore_eos=True, max_tokens=5, return_token_ids=True).choices[0]
    assert (choice.finish_reason, choice.token_ids) == ("length", [END] * 5)


def test_a_stop_token_counts_also_where_the_models_own_end_does_not(door, plain):
    choice = door.answer(stop_token_ids=[plain.token_ids[2]], ignore_eos=True, **FIELDS).choices[0]
    assert choice.token_ids == plain.token_ids[:3] and choice.finish_reason == "stop"


def test_an_echo_does_not_stop_at_its_prompt(door):
    assert door.answer(echo=True, stop=".", max_tokens=12).text == PROMPT + " Paris"
