"""Resume: a descriptor and the tokens received so far give the rest of the same answer, to the bit."""

import time

import grpc
import pytest

from rpc import name_of
from stubs import v1

REQUESTS = {
    "greedy": {},
    "drawn": {"sampling": {"temperature": 1.0, "seed": 3, "top_p": 0.9, "top_k": 50, "min_p": 0.01}},
    "penalties": {
        "sampling": {
            "temperature": 0.8,
            "seed": 4,
            "repetition_penalty": 1.3,
            "presence_penalty": 0.5,
            "frequency_penalty": 0.5,
        }
    },
    "bias": {"sampling": {"logit_bias": [v1.LogitBias(id=7042, bias=-100)], "top_logprobs": 3}},
    "choice": {"sampling": {"temperature": 1.0, "seed": 5, "choice": 2}},
    "stop": {"stop": ["States"], "max_tokens": 40},
    "end": {"chat": [("user", "Hi")], "max_tokens": 40},
}


def resume(rpc, choice, received, **more):
    resumed = v1.Resume(descriptor=choice.descriptor, received_token_ids=choice.ids[:received])
    for name, value in more.items():
        setattr(resumed, name, value)
    return rpc.generate(resume=resumed)


@pytest.mark.parametrize("received", [0, 1, 5, -1])
@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
def test_the_rest_is_the_same_to_the_bit(rpc, fields, received):
    whole = rpc.generate(**{"max_tokens": 12, **fields})
    received %= len(whole.ids)
    rest = resume(rpc, whole, received)
    assert rest.ids == whole.ids[received:] and rest.bits == whole.bits[received:]
    assert [token.top_logprobs for token in rest.tokens] == [token.top_logprobs for token in whole.tokens[received:]]
    assert [token.index for token in rest.tokens] == list(range(received, len(whole.ids)))
    assert whole.text.endswith(rest.text) and rest.reason == whole.reason
    assert rest.usage.completion_tokens == whole.usage.completion_tokens


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
def test_a_descriptor_is_the_same_after_a_resume(rpc, fields):
    whole = rpc.generate(**{"max_tokens": 6, **fields})
    assert resume(rpc, whole, 2).descriptor == whole.descriptor


@pytest.mark.parametrize("fields", REQUESTS.values(), ids=REQUESTS.keys())
def test_who_has_all_tokens_misses_only_the_end(rpc, fields):
    whole = rpc.generate(**{"max_tokens": 12, **fields})
    rest = resume(rpc, whole, len(whole.ids))
    assert (rest.tokens, rest.reason) == ([], whole.reason)


def test_texts_before_and_after_are_the_whole(rpc):
    whole = rpc.generate(max_tokens=10)
    rest = resume(rpc, whole, 4)
    before = rpc.inference.Detokenize(v1.DetokenizeRequest(token_ids=whole.ids[:4])).text
    assert before + rest.text == whole.text


def test_a_stop_that_began_before_the_break_is_found_after_it(rpc):
    whole = rpc.generate(stop=["\n\nThe"], max_tokens=10)
    rest = resume(rpc, whole, len(whole.ids) - 1)
    assert (rest.text, rest.reason) == ("", "stop")


def test_scores_of_a_prompt_go_on_where_they_broke_off(rpc):
    fields = dict(prompt_logprobs=2, max_tokens=4)
    whole = rpc.generate(**fields)
    rest = resume(rpc, whole, 0, received_prompt_logprobs=2)
    assert rest.prompt_scores == whole.prompt_scores[2:] and rest.bits == whole.bits


def test_one_of_several_choices_is_resumed_alone(rpc):
    choices = rpc.choices(n=3, sampling={"temperature": 1.0, "seed": 8}, max_tokens=8)
    rest = resume(rpc, choices[1], 3)
    assert rest.ids == choices[1].ids[3:]


def test_a_stream_that_broke_off_goes_on_elsewhere(rpc):
    whole = rpc.generate(max_tokens=30, sampling={"temperature": 1.0, "seed": 11})
    responses = rpc.start(max_tokens=30, sampling={"temperature": 1.0, "seed": 11})
    descriptor, received = next(responses).started.descriptor, []
    while len(received) < 5:
        received += [token.id for token in next(responses).chunk.tokens]
    responses.cancel()
    rest = rpc.generate(resume=v1.Resume(descriptor=descriptor, received_token_ids=received))
    assert received + rest.ids == whole.ids


@pytest.mark.parametrize(
    "change, code, name",
    [
        ({"numerics_id": b"0" * 16}, "FAILED_PRECONDITION", "other_numerics"),
        ({"deadline_unix_ms": 1}, "DEADLINE_EXCEEDED", "deadline"),
        ({"max_tokens": 3}, "INVALID_ARGUMENT", "invalid_request"),
        ({"temperature": -1.0}, "INVALID_ARGUMENT", "invalid_request"),
        ({"prompt_token_ids": []}, "INVALID_ARGUMENT", "invalid_request"),
    ],
    ids=lambda one: str(one)[:20],
)
def test_a_descriptor_that_cannot_be_kept_is_refused(rpc, change, code, name):
    whole = rpc.generate()
    descriptor = v1.ResumeDescriptor()
    descriptor.CopyFrom(whole.descriptor)
    for field in change:
        descriptor.ClearField(field)
    descriptor.MergeFrom(v1.ResumeDescriptor(**change))
    error = rpc.refused(resume=v1.Resume(descriptor=descriptor, received_token_ids=whole.ids[:5]))
    assert (error.code(), name_of(error)) == (grpc.StatusCode[code], name)


@pytest.mark.parametrize("fields", [{"n": 2}, {"request_id": "another"}], ids=str)
def test_what_contradicts_the_descriptor_is_refused(rpc, fields):
    whole = rpc.generate()
    error = rpc.refused(resume=v1.Resume(descriptor=whole.descriptor), **fields)
    assert (error.code(), name_of(error)) == (grpc.StatusCode.INVALID_ARGUMENT, "invalid_request")


def test_a_resume_needs_a_descriptor(rpc):
    assert rpc.refused(resume=v1.Resume()).code() == grpc.StatusCode.INVALID_ARGUMENT


def test_a_deadline_is_that_of_the_first_request(rpc):
    before = int(time.time() * 1000)
    whole = rpc.generate(timeout_ms=50_000)
    assert before <= whole.descriptor.deadline_unix_ms - 50_000 <= time.time() * 1000 + 1
    assert resume(rpc, whole, 3).descriptor.deadline_unix_ms == whole.descriptor.deadline_unix_ms
