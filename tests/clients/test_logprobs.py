"""Logprobs: of tokens, of the likeliest beside them, and of a prompt's tokens."""

import math

import pytest

from answer import without_special
from door import PROMPT

EMOJI = "Say 🙂👍 é now \u05e9\u05dc\u05d5\u05dd"


def content(door, **fields):
    """Logprobs of a chat, token by token."""
    return door.chat_answer("Hi", logprobs=True, **fields).choices[0].logprobs["content"]


def of_completion(door, prompt=PROMPT, **fields):
    return door.answer(prompt, **fields).choices[0].logprobs


def test_chats_have_none_unless_they_are_wanted(door):
    assert door.chat("Hi").choices[0].logprobs is None
    assert door.chat("Hi", logprobs=False).choices[0].logprobs is None


def test_a_chat_has_one_for_each_token(door):
    assert len(content(door, max_tokens=5)) == 5


def test_the_likeliest_of_a_chat_are_as_many_as_asked_for_and_in_order(door):
    for token in content(door, top_logprobs=4):
        tops = [top["logprob"] for top in token["top_logprobs"]]
        assert len(tops) == 4 and tops == sorted(tops, reverse=True)
        assert sum(map(math.exp, tops)) <= 1 + 1e-6


def test_the_greedy_token_of_a_chat_is_the_likeliest(door):
    for token in content(door, top_logprobs=2):
        best = token["top_logprobs"][0]
        assert (token["token"], token["logprob"], token["bytes"]) == (best["token"], best["logprob"], best["bytes"])


def test_a_chat_may_have_logprobs_without_likeliest_tokens(door):
    assert all(token["top_logprobs"] == [] for token in content(door, top_logprobs=0))


def test_bytes_of_a_chats_tokens_are_its_text(door):
    # The only piece that these prompts make of an emoji are parts of it.
    answer = door.chat_answer("Repeat: 👍👍👍 ok", logprobs=True, max_tokens=16, ignore_eos=True)
    choice = answer.choices[0]
    joined = b"".join(bytes(token["bytes"]) for token in choice.logprobs["content"])
    assert without_special(joined.decode(errors="replace")) == choice.text


def test_logprobs_of_a_chat_stream_as_they_come_whole(door):
    fields = dict(logprobs=True, top_logprobs=3, max_tokens=6)
    streamed = door.chat_answer("Hi", stream=True, **fields)
    assert streamed.choices[0].logprobs["content"]
    assert streamed.choices == door.chat_answer("Hi", **fields).choices


def test_each_choice_of_a_chat_has_its_own(door):
    answer = door.chat_answer("Hi", logprobs=True, n=2, temperature=1, seed=3)
    for choice in answer.choices.values():
        joined = b"".join(bytes(token["bytes"]) for token in choice.logprobs["content"])
        assert without_special(joined.decode(errors="replace")) == choice.text


def test_a_completions_tokens_are_its_text(door):
    answer = door.answer(logprobs=1)
    logprobs = answer.choices[0].logprobs
    assert "".join(logprobs["tokens"]) == answer.text
    assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(logprobs["tokens"]) == 8


def test_logprobs_are_negative_and_those_of_one_position_sum_to_at_most_1(door):
    logprobs = of_completion(door, logprobs=20)
    assert all(logprob <= 0 for logprob in logprobs["token_logprobs"])
    for top in logprobs["top_logprobs"]:
        assert len(top) == 20
        assert sum(map(math.exp, top.values())) <= 1 + 1e-6


def test_the_chosen_token_is_always_among_a_completions_likeliest(door):
    # OpenAI: "The API will always return the logprob of the sampled token, so there may be up to logprobs+1 elements".
    logprobs = of_completion(door, logprobs=1, temperature=2, seed=4)
    for token, logprob, top in zip(*(logprobs[k] for k in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert top.get(token) == logprob


def test_logprobs_do_not_depend_on_temperature_penalties_or_bias(door):
    (forced,) = door.tokenize(" Paris")
    plain = of_completion(door, logprobs=3, max_tokens=1)
    bent = of_completion(door, logprobs=3, max_tokens=1, temperature=1, logit_bias={str(forced): 100}, seed=1)
    assert plain == bent


def test_logprobs_of_a_completion_stream_as_they_come_whole(door):
    fields = dict(logprobs=3, max_tokens=10)
    assert door.answer(stream=True, **fields).choices == door.answer(**fields).choices


def test_a_prompts_first_token_has_no_logprob_and_the_others_have_one(door):
    logprobs = of_completion(door, echo=True, logprobs=2, max_tokens=2)
    assert logprobs["tokens"][:5] == ["The", " capital", " of", " France", " is"]
    assert logprobs["token_logprobs"][0] is None and logprobs["top_logprobs"][0] is None
    assert all(logprob <= 0 for logprob in logprobs["token_logprobs"][1:])
    assert len(logprobs["tokens"]) == 7


def test_a_prompt_is_scored_without_an_answer(door):
    alone = of_completion(door, echo=True, logprobs=2, max_tokens=0)
    with_answer = of_completion(door, echo=True, logprobs=2, max_tokens=2)
    assert alone["token_logprobs"] == with_answer["token_logprobs"][:5]


def test_a_token_has_the_same_logprob_as_part_of_an_answer_and_of_a_prompt(door):
    answer = door.answer(logprobs=2, max_tokens=6)
    scored = of_completion(door, PROMPT + answer.text, echo=True, logprobs=2, max_tokens=0)
    assert scored["token_logprobs"][5:] == answer.choices[0].logprobs["token_logprobs"]


def test_offsets_say_where_a_token_stands(door):
    answer = door.answer(echo=True, logprobs=1)
    _check_offsets(answer)


def test_offsets_count_characters_also_where_a_token_is_a_part_of_one(door):
    _check_offsets(door.answer(EMOJI, echo=True, logprobs=1, max_tokens=2))


def test_offsets_stream_as_they_come_whole(door):
    fields = dict(echo=True, logprobs=1)
    streamed, whole = (door.answer(EMOJI, stream=stream, **fields) for stream in (True, False))
    assert streamed.choices[0].logprobs["text_offset"] == whole.choices[0].logprobs["text_offset"]


def _check_offsets(answer):
    """Of whole characters. Parts of one are written as bytes."""
    choice = answer.choices[0]
    for token, offset in zip(choice.logprobs["tokens"], choice.logprobs["text_offset"], strict=True):
        if not token.startswith("bytes:"):
            assert choice.text[offset : offset + len(token)] == token


def test_parts_of_characters_have_their_bytes(door):
    tokens = of_completion(door, EMOJI, echo=True, logprobs=0, max_tokens=0)["tokens"]
    assert any(token.startswith("bytes:") for token in tokens)
    assert b"".join(map(_bytes_of, tokens)).decode() == EMOJI


def _bytes_of(token):
    if token.startswith("bytes:"):
        return bytes(int(part, 16) for part in token.removeprefix("bytes:").split("\\x")[1:])
    return token.encode()


def test_scores_of_every_prompt_of_a_list_are_its_own(door):
    prompts = [PROMPT, "Once upon a time there was"]
    fields = dict(echo=True, logprobs=1, max_tokens=0)
    together = door.answer(prompts, **fields)
    assert [together.choices[index] for index in (0, 1)] == [door.answer(one, **fields).choices[0] for one in prompts]


@pytest.mark.parametrize("n", [2, 3])
def test_every_choice_of_an_echo_has_the_prompts_scores(door, n):
    answer = door.answer(echo=True, logprobs=1, n=n, temperature=1, seed=1, max_tokens=2)
    scores = [choice.logprobs["token_logprobs"][:5] for choice in answer.choices.values()]
    assert scores == [scores[0]] * n and scores[0][0] is None
