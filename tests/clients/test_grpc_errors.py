"""Refusals over gRPC: the code, `kvasir-error` and `kvasir-param` beside it."""

import grpc
import pytest

from rpc import name_of, request
from stubs import admin, v1

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def param_of(error):
    return dict(error.trailing_metadata()).get("kvasir-param")


OUT_OF_RANGE = [
    ("temperature", -1.0),
    ("temperature", 100.5),
    ("temperature", float("nan")),
    ("temperature", float("inf")),
    ("top_p", 0.0),
    ("top_p", 1.5),
    ("min_p", -0.5),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", float("inf")),
    ("presence_penalty", 2.5),
    ("frequency_penalty", -2.5),
    ("top_logprobs", 21),
    ("logit_bias", [v1.LogitBias(id=1, bias=101)]),
    ("logit_bias", [v1.LogitBias(id=1, bias=1), v1.LogitBias(id=1, bias=2)]),
    ("logit_bias", [v1.LogitBias(id=49152, bias=1)]),
    ("logit_bias", [v1.LogitBias(id=id, bias=1) for id in range(1025)]),
    ("stop_token_ids", [49152]),
    ("stop_token_ids", list(range(129))),
]


@pytest.mark.parametrize("field, value", OUT_OF_RANGE, ids=lambda one: str(one)[:20])
def test_a_value_out_of_range_is_refused(rpc, field, value):
    error = rpc.refused(sampling={field: value})
    assert (error.code(), name_of(error)) == (INVALID, "invalid_request")
    assert param_of(error) == field


@pytest.mark.parametrize(
    "fields",
    [
        {"text": ""},
        {"ids": []},
        {"ids": [49152]},
        {"chat": []},
        {"chat": [("robot", "Hi")]},
        {"max_tokens": 0},
        {"n": 0},
        {"n": 129},
        {"n": 2, "sampling": {"choice": 1}},
        {"prompt_logprobs": 21},
        {"stop": [""]},
        {"stop": ["a"] * 17},
        {"stop": ["a" * 1025]},
        {"request_id": "r" * 129},
        {"tenant": "t" * 129},
        {"timeout_ms": 0},
    ],
    ids=lambda fields: str(fields)[:30],
)
def test_what_is_no_request_is_refused(rpc, fields):
    error = rpc.refused(**fields)
    assert (error.code(), name_of(error)) == (INVALID, "invalid_request")
    assert error.details()


def test_a_request_needs_a_prompt(rpc):
    with pytest.raises(grpc.RpcError) as caught:
        list(rpc.inference.Generate(v1.GenerateRequest()))
    assert (caught.value.code(), name_of(caught.value)) == (INVALID, "invalid_request")


@pytest.mark.parametrize("fields", [{"ids": [504] * 8193}, {"max_tokens": 8192}], ids=["prompt", "answer"])
def test_too_many_tokens_are_named_so(rpc, fields):
    error = rpc.refused(**fields)
    assert (error.code(), name_of(error)) == (INVALID, "too_long")
    assert "8192" in error.details()


def test_a_context_may_be_filled_to_its_last_token(rpc):
    responses = rpc.start(max_tokens=8192 - 5, ignore_eos=True)
    assert next(responses).started.descriptor.max_tokens == 8187
    responses.cancel()
    rpc.await_idle()


def test_a_name_in_use_is_refused(rpc):
    responses = rpc.start(request_id="busy", max_tokens=4000, ignore_eos=True)
    next(responses)
    error = rpc.refused(request_id="busy")
    assert (error.code(), name_of(error)) == (grpc.StatusCode.ALREADY_EXISTS, "already_running")
    responses.cancel()
    rpc.await_idle()


def test_an_answer_that_takes_too_long_fails_at_its_deadline(rpc):
    error = rpc.refused(timeout_ms=200, max_tokens=8000, ignore_eos=True)
    assert (error.code(), name_of(error)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")
    rpc.await_idle()


def test_the_deadline_of_a_call_frees_its_sequence(rpc):
    with pytest.raises(grpc.RpcError) as caught:
        list(rpc.inference.Generate(request(max_tokens=8000, ignore_eos=True), timeout=0.3))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    rpc.await_idle()


def test_tokens_that_do_not_exist_have_no_text(rpc):
    with pytest.raises(grpc.RpcError) as caught:
        rpc.inference.Detokenize(v1.DetokenizeRequest(token_ids=[49152]))
    assert (caught.value.code(), name_of(caught.value)) == (INVALID, "invalid_request")


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda rpc: rpc.admin.Drain(admin.DrainRequest(worker_id="none")), "unknown_worker"),
        (lambda rpc: rpc.admin.Reshard(admin.ReshardRequest(group=9, ranks=1)), "unknown_group"),
        (lambda rpc: rpc.admin.Migrate(admin.MigrateRequest(request_id="none")), "unknown_request"),
    ],
    ids=["drain", "reshard", "migrate"],
)
def test_an_operator_is_told_what_is_not_there(rpc, call, name):
    with pytest.raises(grpc.RpcError) as caught:
        call(rpc)
    assert (caught.value.code(), name_of(caught.value)) == (grpc.StatusCode.NOT_FOUND, name)


def test_an_unknown_method_is_unimplemented(rpc):
    call = rpc.channel.unary_unary("/kvasir.v1.Inference/Nothing", lambda _: b"", lambda _: None)
    with pytest.raises(grpc.RpcError) as caught:
        call(None)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_what_is_no_message_is_refused(rpc):
    call = rpc.channel.unary_unary("/kvasir.v1.Inference/Tokenize", lambda _: b"\xff\xff\xff", lambda _: None)
    with pytest.raises(grpc.RpcError) as caught:
        call(None)
    assert caught.value.code() in (grpc.StatusCode.INTERNAL, INVALID)


def test_several_choices_are_taken_or_refused_together(rpc):
    before = rpc.await_idle().counters["submitted"]
    rpc.refused(n=3, sampling={"temperature": -1.0})
    assert rpc.counters()["submitted"] == before
