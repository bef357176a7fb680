"""How tokens are drawn: what is deterministic, and what each knob does to the answer."""

from collections import Counter

import pytest

STORY = "Once upon a time"
REPETITIVE = "1 1 1 1 1 1 1 1"
# One token.
WORD = " cat"


def drawn(door, **fields):
    return door.answer(STORY, **{"temperature": 1, "seed": 1, "max_tokens": 12, **fields})


def ids(answer):
    return answer.choices[0].token_ids


def test_a_temperature_of_0_is_deterministic_whatever_the_seed(door):
    answers = [drawn(door, temperature=0, seed=seed).text for seed in (1, 2, None)]
    assert len(set(answers)) == 1


def test_the_same_seed_gives_the_same_answer(door):
    assert drawn(door).choices == drawn(door).choices


def test_another_seed_gives_another_answer(door):
    assert len({drawn(door, seed=seed).text for seed in range(4)}) == 4


def test_without_a_seed_answers_differ(door):
    assert drawn(door, seed=None).text != drawn(door, seed=None).text


def test_the_usual_temperature_is_1(door):
    assert drawn(door, temperature=None).choices == drawn(door, temperature=1).choices


def test_a_higher_temperature_gives_another_answer(door):
    assert drawn(door, temperature=1.7).text != drawn(door, temperature=0.2).text


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, 2**64 - 1])
def test_any_seed_of_64_bits_is_taken(door, seed):
    assert drawn(door, seed=seed, max_tokens=2).choices == drawn(door, seed=seed, max_tokens=2).choices


@pytest.mark.parametrize("knob", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=str)
def test_a_knob_that_leaves_one_token_is_greedy(door, knob):
    assert drawn(door, **knob).choices == drawn(door, temperature=0).choices


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-45])
def test_a_temperature_of_almost_0_is_greedy(door, temperature):
    assert drawn(door, temperature=temperature).choices == drawn(door, temperature=0).choices


@pytest.mark.parametrize("knob", [{"top_k": 0}, {"top_k": -1}, {"top_p": 1.0}, {"min_p": 0.0}], ids=str)
def test_a_knob_that_keeps_all_changes_nothing(door, knob):
    assert drawn(door, **knob).choices == drawn(door).choices


@pytest.mark.parametrize("top_k", [2, 5])
def test_top_k_draws_from_the_likeliest(door, top_k):
    choice = drawn(door, top_k=top_k, logprobs=top_k, temperature=2).choices[0]
    # One that is not among them comes besides.
    assert all(len(top) == top_k for top in choice.logprobs["top_logprobs"])


def test_without_top_k_others_are_drawn_too(door):
    choice = drawn(door, logprobs=2, temperature=2).choices[0]
    assert any(len(top) == 3 for top in choice.logprobs["top_logprobs"])


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 2.0}, {"presence_penalty": 2.0}, {"frequency_penalty": 2.0}], ids=str
)
def test_a_penalty_makes_an_answer_repeat_less(door, penalty):
    fields = dict(max_tokens=24, ignore_eos=True, return_token_ids=True)
    plain, penalized = door.answer(REPETITIVE, **fields), door.answer(REPETITIVE, **fields, **penalty)
    assert _most_frequent(penalized) < _most_frequent(plain)


def _most_frequent(answer):
    return Counter(ids(answer)).most_common(1)[0][1]


@pytest.mark.parametrize(
    "penalty", [{"repetition_penalty": 1.0}, {"presence_penalty": 0.0}, {"frequency_penalty": 0.0}], ids=str
)
def test_a_penalty_of_nothing_changes_nothing(door, penalty):
    assert door.answer(REPETITIVE, **penalty).choices == door.answer(REPETITIVE).choices


def test_a_negative_penalty_makes_an_answer_repeat_more(door):
    fields = dict(max_tokens=24, ignore_eos=True, return_token_ids=True)
    plain, rewarded = door.answer(STORY, **fields), door.answer(STORY, **fields, frequency_penalty=-2.0)
    assert _most_frequent(rewarded) > _most_frequent(plain)


def test_a_bias_of_minus_100_bans_a_token(door):
    fields = dict(max_tokens=8, return_token_ids=True)
    banned = ids(door.answer(**fields))[0]
    without = ids(door.answer(**fields, logit_bias={str(banned): -100}))
    assert banned not in without


def test_a_bias_of_100_forces_a_token(door):
    (forced,) = door.tokenize(WORD)
    answer = door.answer(max_tokens=4, logit_bias={str(forced): 100}, return_token_ids=True)
    assert ids(answer) == [forced] * 4
    assert answer.text == WORD * 4


def test_a_bias_of_100_forces_a_token_at_a_temperature_too(door):
    (forced,) = door.tokenize(WORD)
    assert door.answer(max_tokens=4, temperature=1, logit_bias={str(forced): 100}).text == WORD * 4


def test_a_bias_works_in_chats(door):
    (forced,) = door.tokenize(WORD)
    assert door.chat_answer("Hi", max_tokens=2, logit_bias={str(forced): 100}).text == WORD * 2


def test_every_knob_works_in_a_stream(door):
    fields = dict(
        temperature=0.9,
        top_p=0.95,
        top_k=40,
        min_p=0.01,
        repetition_penalty=1.1,
        presence_penalty=0.2,
        frequency_penalty=0.3,
        logit_bias={"198": -5},
        n=2,
        logprobs=3,
        return_token_ids=True,
    )
    assert drawn(door, stream=True, **fields).choices == drawn(door, **fields).choices
