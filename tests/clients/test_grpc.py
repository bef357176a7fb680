"""Generate over gRPC: prompts, knobs, choices, logprobs, bytes, and what the messages promise."""

import math

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from rpc import PROMPT, bits, request
from stubs import v1

IDS = [504, 3575, 282, 4649, 314]
DRAWN = dict(temperature=1.0, seed=1)
STORY = dict(text="Once upon a time", max_tokens=12)


def drawn(rpc, **sampling):
    return rpc.generate(sampling={**DRAWN, **sampling}, **STORY)


def test_a_text_is_answered(rpc):
    choice = rpc.generate()
    assert choice.text.startswith(" Paris") and choice.reason == "length"
    assert (choice.usage.prompt_tokens, choice.usage.completion_tokens) == (5, 8)


def test_messages_come_in_order(rpc):
    responses = list(rpc.start())
    events = [response.WhichOneof("event") for response in responses]
    assert events[0] == "started" and events[-1] == "finished" and set(events[1:-1]) == {"chunk"}
    indices = [token.index for response in responses for token in response.chunk.tokens]
    assert indices == list(range(8))


def test_ids_are_the_same_prompt_as_their_text(rpc):
    one, other = rpc.generate(ids=IDS), rpc.generate(text=PROMPT)
    assert (one.ids, one.bits, one.text) == (other.ids, other.bits, other.text)


def test_a_chat_is_the_prompt_that_the_template_makes(rpc):
    chat = v1.Chat(messages=[v1.ChatMessage(role="user", content="Hi")])
    ids = list(rpc.inference.Tokenize(v1.TokenizeRequest(chat=chat)).token_ids)
    choice = rpc.generate(chat=[("user", "Hi")])
    assert list(choice.descriptor.prompt_token_ids) == ids
    assert choice.ids == rpc.generate(ids=ids).ids


def test_a_chats_turn_may_be_left_unopened(rpc):
    messages = [v1.ChatMessage(role="user", content="Hi")]
    chats = [v1.Chat(messages=messages, no_generation_prompt=unopened) for unopened in (False, True)]
    opened, left = (list(rpc.inference.Tokenize(v1.TokenizeRequest(chat=chat)).token_ids) for chat in chats)
    assert opened[: len(left)] == left and len(opened) > len(left)


def test_both_doors_give_the_same_answer(rpc, door):
    choice = drawn(rpc, top_logprobs=2)
    other = door.answer("Once upon a time", temperature=1, seed=1, max_tokens=12, return_token_ids=True, logprobs=2)
    assert choice.ids == other.choices[0].token_ids and choice.text == other.text
    assert choice.bits == [bits(logprob) for logprob in other.choices[0].logprobs["token_logprobs"]]


def test_the_descriptor_holds_what_was_left_open(rpc):
    descriptor = rpc.generate(max_tokens=None, stop=["\n"]).descriptor
    assert descriptor.request_id and list(descriptor.prompt_token_ids) == IDS
    assert (descriptor.temperature, descriptor.top_k, descriptor.top_p) == (0, 0, 1)
    assert descriptor.repetition_penalty == 1 and list(descriptor.stop) == ["\n"]
    assert descriptor.max_tokens == 8192 - len(IDS) and 2 in descriptor.stop_token_ids
    assert descriptor.deadline_unix_ms > 0


def test_the_descriptors_of_both_doors_have_the_numerics_of_the_cluster(rpc):
    assert rpc.generate().descriptor.numerics_id.hex() == rpc.status().numerics_id


def test_a_seed_is_drawn_and_told(rpc):
    free = rpc.generate(sampling={"temperature": 1.0}, **STORY)
    again = rpc.generate(sampling={"temperature": 1.0, "seed": free.descriptor.seed}, **STORY)
    assert free.ids == again.ids and free.descriptor.seed != rpc.generate().descriptor.seed


@pytest.mark.parametrize("knob", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 0.0}], ids=str)
def test_a_knob_that_leaves_one_token_is_greedy(rpc, knob):
    assert drawn(rpc, **knob).ids == rpc.generate(**STORY).ids


@pytest.mark.parametrize(
    "knob",
    [
        {"seed": 2},
        {"choice": 1},
        {"temperature": 0.3},
        {"top_k": 3},
        {"top_p": 0.3},
        {"min_p": 0.2},
        {"repetition_penalty": 3.0},
        {"presence_penalty": 2.0},
        {"frequency_penalty": 2.0},
        {"logit_bias": [v1.LogitBias(id=28, bias=-100)]},
    ],
    ids=lambda knob: next(iter(knob)),
)
def test_a_knob_changes_the_answer(rpc, knob):
    # A longer one, of which something repeats.
    fields = dict(text="Once upon a time", max_tokens=32, ignore_eos=True)
    assert rpc.generate(sampling={**DRAWN, **knob}, **fields).ids != rpc.generate(sampling=DRAWN, **fields).ids


def test_choices_are_those_of_requests_of_their_own(rpc):
    together = rpc.choices(sampling=DRAWN, n=3, **STORY)
    alone = [drawn(rpc, choice=nth) for nth in range(3)]
    assert [(one.ids, one.bits) for one in together] == [(one.ids, one.bits) for one in alone]
    assert [one.descriptor.choice for one in together] == [0, 1, 2]


def test_logprobs_come_with_the_likeliest_in_order(rpc):
    for token in rpc.generate(sampling={"top_logprobs": 20}).tokens:
        logprobs = [top.logprob for top in token.top_logprobs]
        assert len(logprobs) == 20 and logprobs == sorted(logprobs, reverse=True)
        assert sum(map(math.exp, logprobs)) <= 1 + 1e-6
        assert (token.id, token.logprob) == (token.top_logprobs[0].id, token.top_logprobs[0].logprob)


def test_a_prompts_tokens_have_logprobs(rpc):
    choice = rpc.generate(prompt_logprobs=2, max_tokens=0)
    assert [token.id for token in choice.prompt_scores] == IDS[1:]
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in choice.prompt_scores)
    assert (choice.reason, choice.tokens) == ("length", [])


def test_scores_of_a_prompt_come_before_its_answer(rpc):
    events = [response.WhichOneof("event") for response in rpc.start(prompt_logprobs=0)]
    assert events.index("prompt_scores") < events.index("chunk")


def test_the_first_of_several_choices_reports_the_prompts_scores(rpc):
    first, second = rpc.choices(prompt_logprobs=1, n=2)
    assert len(first.prompt_scores) == len(IDS) - 1 and not second.prompt_scores


def test_a_long_prompt_is_scored_from_end_to_end(rpc):
    ids = (IDS * 200)[:900]
    choice = rpc.generate(ids=ids, prompt_logprobs=0, max_tokens=0)
    assert [token.id for token in choice.prompt_scores] == ids[1:]


def test_bytes_of_tokens_are_the_text(rpc):
    text = "Say 🙂👍 é"
    choice = rpc.generate(text=text, prompt_logprobs=1, token_bytes=True, sampling={"top_logprobs": 1})
    assert b"".join(choice.prompt_bytes).decode() == text
    assert b"".join(token.bytes for token in choice.prompt_scores) == b"".join(choice.prompt_bytes[1:])
    assert b"".join(token.bytes for token in choice.tokens).decode(errors="replace") == choice.text
    assert all(token.top_logprobs[0].bytes == token.bytes for token in choice.tokens)


def test_bytes_do_not_come_unasked(rpc):
    choice = rpc.generate()
    assert not choice.prompt_bytes and not any(token.bytes for token in choice.tokens)


def test_a_stop_string_ends_an_answer(rpc):
    choice = rpc.generate(stop=["\n\n"])
    assert (choice.text, choice.reason) == (" Paris.", "stop")
    assert choice.usage.completion_tokens == len(choice.tokens)


def test_a_stop_token_is_part_of_the_answer(rpc):
    choice = rpc.generate(sampling={"stop_token_ids": [30]})
    assert (choice.ids[-1], choice.text, choice.reason) == (30, " Paris.", "stop")


def test_the_models_own_end_can_be_ignored(rpc):
    end = {"logit_bias": [v1.LogitBias(id=2, bias=100)]}
    assert rpc.generate(sampling=end).reason == "stop"
    ignored = rpc.generate(sampling=end, ignore_eos=True)
    assert (ignored.reason, ignored.ids) == ("length", [2] * 8)


def test_a_prompt_is_cached_for_its_tenant_alone(rpc):
    ids = (IDS * 40)[:150]
    cached = []
    for tenant in ("ann", "ann", "bob"):
        cached.append(rpc.generate(ids=ids, tenant=tenant, max_tokens=1).usage.cached_tokens)
        rpc.await_settled()
    assert cached == [0, 128, 0]


def test_pieces_of_text_never_end_within_a_character(rpc):
    end = {"logit_bias": [v1.LogitBias(id=47526, bias=100)]}
    pieces = [response.chunk.text for response in rpc.start(sampling=end) if response.HasField("chunk")]
    assert pieces == [" 🙂"] * 8


def test_a_text_is_tokenized_and_comes_back(rpc):
    text = "Hi 🙂 é<|im_end|>"
    tokenized = rpc.inference.Tokenize(v1.TokenizeRequest(text=text))
    assert tokenized.token_ids[-1] == 2
    assert b"".join(tokenized.token_bytes).decode() == text
    assert rpc.inference.Detokenize(v1.DetokenizeRequest(token_ids=tokenized.token_ids)).text == text


def test_special_tokens_may_be_taken_as_text(rpc):
    plain = rpc.inference.Tokenize(v1.TokenizeRequest(text="<|im_end|>", plain=True)).token_ids
    assert 2 not in plain and len(plain) > 1


def test_the_model_is_described(rpc):
    model = rpc.inference.GetModel(v1.GetModelRequest())
    assert model.ready and model.context_len == 8192 and model.vocab_size == 49152
    assert len(model.numerics_id) == 16 and model.started_unix > 0 and model.served_names


def test_an_abort_ends_a_stream_as_cancelled(rpc):
    responses = rpc.start(request_id="abort me", max_tokens=4000, ignore_eos=True)
    next(responses)
    assert rpc.inference.Abort(v1.AbortRequest(request_id="abort me")).found
    last = list(responses)[-1]
    assert v1.FinishReason.Name(last.finished.reason) == "FINISH_REASON_CANCELLED"


def test_an_abort_of_nothing_finds_nothing(rpc):
    assert not rpc.inference.Abort(v1.AbortRequest(request_id="nothing")).found


def test_a_call_that_is_cancelled_frees_its_sequences(rpc):
    responses = rpc.start(n=3, max_tokens=4000, ignore_eos=True)
    next(responses)
    responses.cancel()
    rpc.await_idle()


def test_a_running_request_is_shown_with_its_name_and_tenant(rpc):
    responses = rpc.start(request_id="shown", tenant="ann", priority=2, max_tokens=4000, ignore_eos=True)
    try:
        (sequence,) = rpc.await_status(lambda status: status.sequences, "a sequence").sequences
        assert (sequence.request_id, sequence.tenant, sequence.priority) == ("shown", "ann", 2)
    finally:
        responses.cancel()
    rpc.await_idle()


def test_counters_grow_by_what_was_done(rpc):
    rpc.await_idle()
    before = rpc.counters()
    rpc.generate(max_tokens=5, ignore_eos=True)
    after = rpc.counters()
    grown = {name: after[name] - before[name] for name in ("submitted", "finished", "prompt_tokens")}
    assert grown == {"submitted": 1, "finished": 1, "prompt_tokens": 5}
    assert after["generation_tokens"] - before["generation_tokens"] >= 5


@pytest.mark.parametrize("service", ["", "kvasir.v1.Inference"])
def test_the_server_is_healthy(rpc, service):
    health = health_pb2_grpc.HealthStub(rpc.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_the_services_describe_themselves(rpc):
    services = ProtoReflectionDescriptorDatabase(rpc.channel)
    assert {"kvasir.v1.Inference", "kvasir.v1.Admin", "grpc.health.v1.Health"} <= set(services.get_services())
    described = services.FindFileContainingSymbol("kvasir.v1.GenerateRequest")
    messages = {message.name for message in described.message_type}
    assert {"GenerateRequest", "ResumeDescriptor", "Constraint"} <= messages


def test_the_described_fields_are_those_of_the_protos(rpc):
    described = ProtoReflectionDescriptorDatabase(rpc.channel).FindFileContainingSymbol("kvasir.v1.SamplingParams")
    (message,) = (one for one in described.message_type if one.name == "SamplingParams")
    ours = {field.name: field.number for field in v1.SamplingParams.DESCRIPTOR.fields}
    assert {field.name: field.number for field in message.field} == ours


def test_unknown_fields_do_not_break_a_request(rpc):
    # A newer client's field, number 1000.
    newer = v1.GenerateRequest.FromString(request().SerializeToString() + b"\xc2\x3e\x01x")
    call = rpc.inference.Generate(newer)
    assert [response.WhichOneof("event") for response in call][-1] == "finished"
