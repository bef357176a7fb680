"""Answers that are checked in: the same tokens and the same bits of logprobs on every machine.

`pytest tests/clients/test_expected.py --write-expected` writes them anew, from the running cluster.
"""

import pytest

import expected

# Of logits: where another engine is so sure of its token, it is ours too.
WIDE_MARGIN = 0.5
REQUESTS = expected.requests()


@pytest.fixture(scope="module")
def answers(rpc, pytestconfig):
    """What is checked in, for the arithmetic of this cluster."""
    numerics_id = rpc.status().numerics_id
    if pytestconfig.getoption("--write-expected"):
        found = {name: expected.written(rpc.generate(**fields)) for name, fields in REQUESTS.items()}
        expected.write(numerics_id, found)
    checked_in = expected.read()
    assert checked_in["numerics_id"] == numerics_id, "the arithmetic is another one"
    return checked_in["answers"]


@pytest.mark.parametrize("name", REQUESTS)
def test_an_answer_is_the_one_that_is_checked_in(rpc, answers, name):
    assert expected.written(rpc.generate(**REQUESTS[name])) == answers[name]


def test_nothing_else_is_checked_in(answers):
    assert answers.keys() == REQUESTS.keys()


@pytest.mark.parametrize("name", ["drawn", "cool", "unicode"])
def test_the_http_door_gives_it_too(door, answers, name):
    request = REQUESTS[name]
    choice = door.answer(
        request["text"], max_tokens=request["max_tokens"], return_token_ids=True, logprobs=0, **request["sampling"]
    ).choices[0]
    assert choice.token_ids == answers[name]["ids"] and choice.text == answers[name]["text"]
    assert [expected.bits(logprob) for logprob in choice.logprobs["token_logprobs"]] == answers[name]["logprob_bits"]


def test_the_http_door_gives_the_chat_too(door, answers):
    (_, content), *_ = REQUESTS["chat"]["chat"]
    choice = door.chat_answer(content, max_tokens=16, return_token_ids=True).choices[0]
    assert choice.token_ids == answers["chat"]["ids"] and choice.text == answers["chat"]["text"]


@pytest.mark.parametrize("nth", range(6))
def test_where_another_engine_is_sure_it_says_the_same(answers, nth):
    # Its weights are not rounded as ours are: after the first other token the answers have nothing in common.
    theirs = expected.golden()[nth]["f32"]
    ours = answers[f"golden {nth}"]["ids"]
    pairs = zip(ours, theirs["output_ids"], theirs["top1_top2_logit_margin"], strict=False)
    margin = next((margin for our, their, margin in pairs if our != their), 0.0)
    assert margin <= WIDE_MARGIN
    assert ours[0] == theirs["output_ids"][0]
