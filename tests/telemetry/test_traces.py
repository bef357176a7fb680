"""Traces as a real collector receives them: from a client to every rank of the group that computed its answer.

The coordinator and its workers begin no trace by themselves here: whatever they record, somebody asked them to.
"""

import secrets
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster import Cluster, free_address, kvasir
from collector import Collector
from waiting import until

RANKS = {0: 1, 1: 2}
STEPS = {"step", "schedule", "execute", "forward"}
STOP_MAX_S = 20
# More than there are for one batch of spans.
TRIES = 12


class Traced:
    """Two groups behind two gateways: one that begins traces, over HTTP, and one that does not."""

    def __init__(self, folder):
        self.collector = Collector(folder, "traces")
        never = ["--otlp", self.collector.grpc, "--trace-ratio", 0]
        self.cluster = Cluster(folder, list(RANKS.values()), [*never, "--no-rebalance"], never, log="info")
        http = ["--otlp", self.collector.http, "--otlp-protocol", "http/protobuf"]
        self.always = self.cluster.add_gateway(*http, "--trace-ratio", 1)
        self.never = self.cluster.add_gateway(*http, "--trace-ratio", 0)
        self.asked = set()

    def parent(self, flag="01"):
        """A trace that somebody else has begun: its id, that of the span, and the header."""
        trace, span = secrets.token_hex(16), secrets.token_hex(8)
        self.asked.add(trace)
        return trace, span, {"traceparent": f"00-{trace}-{span}-{flag}"}

    def generate(self, *flags):
        """By the command line, which begins a trace."""
        otlp = ["--otlp", self.collector.grpc, "--trace-ratio", 1]
        command = ["--endpoint", self.cluster.grpc, "--prompt-ids", "1,2,3", "--ignore-eos", *otlp, *flags]
        done = kvasir("generate", *command)
        assert done.returncode == 0, done.stderr

    def fence(self):
        """What was recorded before has come when this has."""
        trace, _, headers = self.parent()
        assert self.cluster.complete([9, 9], self.never.http, headers, max_tokens=1).status_code == 200
        self.collector.await_spans(trace, is_whole, "a whole trace")
        return trace


@pytest.fixture(scope="module")
def traced(folder):
    traced = Traced(folder)
    yield traced
    assert set(traced.cluster.stop().values()) == {0}
    traced.collector.stop()


def named(spans, name):
    return [span for span in spans if span.name == name or name.endswith(" ") and span.name.startswith(name)]


def one(spans, name):
    (span,) = named(spans, name)
    return span


def children(spans, parent):
    return [span for span in spans if span.parent == parent.id]


def is_whole(spans):
    """Parents that are recorded are there, the request's span is, and so are the ranks' of each step."""
    if not any(span.name.startswith(("chat ", "text_completion ")) for span in spans):
        return False
    steps = named(spans, "step")
    return bool(steps) and all(_step_is_whole(spans, step) for step in steps) and _tokens(spans) >= _output(spans)


def _step_is_whole(spans, step):
    execute = [span for span in children(spans, step) if span.name == "execute"]
    ranks = RANKS[step.attributes["kvasir.group"]] if "kvasir.group" in step.attributes else 1
    return bool(execute) and len(children(spans, execute[0])) == ranks


def _output(spans):
    """Tokens of the answer; each came of a step."""
    return next(
        span for span in spans if " " in span.name and "gen_ai.usage.output_tokens" in span.attributes
    ).attributes["gen_ai.usage.output_tokens"]


def _tokens(spans):
    return len(named(spans, "step"))


def check_steps(spans, request):
    """Each step is planned and executed, on every rank of its group once."""
    for step in named(spans, "step"):
        assert step.parent == request.id
        assert (request.trace, request.id) in step.links
        schedule, execute = one(children(spans, step), "schedule"), one(children(spans, step), "execute")
        assert step.attributes["kvasir.tokens"] >= 1 and step.attributes["kvasir.sequences"] >= 1
        assert execute.kind == "CLIENT" and execute.attributes["kvasir.reduce_us"] >= 0
        assert step.start == schedule.start <= schedule.end <= step.end and execute.end <= step.end
        ranks = children(spans, execute)
        for rank in ranks:
            assert (rank.name, rank.kind, rank.service) == ("forward", "SERVER", "kvasir-worker")
            assert {"kvasir.compute_us", "kvasir.reduce_us", "kvasir.tokens"} <= rank.attributes.keys()
            assert rank.attributes["kvasir.epoch"] == step.attributes["kvasir.epoch"]
            assert rank.attributes["kvasir.step"] == step.attributes["kvasir.step"]
        wanted = RANKS[step.attributes["kvasir.group"]]
        assert sorted(rank.attributes["kvasir.rank"] for rank in ranks) == list(range(wanted))
        assert len({rank.pid for rank in ranks}) == wanted, "each rank is a process"


def check_request(span, operation, model, prompt, output):
    assert (span.name, span.kind, span.service) == (f"{operation} {model}", "SERVER", "kvasir-coordinator")
    assert span.attributes["gen_ai.operation.name"] == operation
    assert span.attributes["gen_ai.provider.name"] == "kvasir"
    assert span.attributes["gen_ai.request.model"] == model
    assert span.attributes["gen_ai.usage.input_tokens"] == prompt
    assert span.attributes["gen_ai.usage.output_tokens"] == output


def test_a_trace_goes_from_a_client_to_every_rank(traced):
    before = traced.collector.traces()
    traced.generate("--max-tokens", 3, "--temperature", 0.5, "--top-p", 0.9, "--seed", 7)
    (trace,) = until(lambda: traced.collector.traces() - before, "a trace")
    traced.asked.add(trace)

    def has_client(spans):
        return named(spans, "generate") and named(spans, "text_completion ") and is_whole(spans)

    spans = traced.collector.await_spans(trace, has_client, "client, coordinator and ranks")
    client = one(spans, "generate")
    assert (client.kind, client.service, client.parent) == ("CLIENT", "kvasir-client", "")
    request = one(spans, "text_completion ")
    assert request.parent == client.id
    check_request(request, "text_completion", traced.cluster.model, 3, 3)
    asked = {"max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "seed": 7}
    for name, wanted in asked.items():
        assert request.attributes[f"gen_ai.request.{name}"] == pytest.approx(wanted, rel=1e-6)
    for name in ("queue", "stream"):
        assert one(spans, name).parent == request.id
    check_steps(spans, request)
    assert len({span.id for span in spans}) == len(spans)


def test_a_trace_goes_through_a_gateway(traced):
    trace, parent, headers = traced.parent()
    body = {"model": traced.cluster.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    body |= {"ignore_eos": True, "temperature": 0}
    url = f"{traced.never.http}/v1/chat/completions"
    answer = traced.cluster.client.post(url, json=body, headers=headers)
    assert answer.status_code == 200, answer.text

    def has_gateway(spans):
        return named(spans, "POST ") and named(spans, "chat ") and is_whole(spans)

    spans = traced.collector.await_spans(trace, has_gateway, "gateway, coordinator and ranks")
    gateway = one(spans, "POST /v1/chat/completions")
    assert (gateway.kind, gateway.service, gateway.parent) == ("SERVER", "kvasir-gateway", parent)
    assert gateway.attributes["http.request.method"] == "POST"
    assert gateway.attributes["http.response.status_code"] == 200
    request = one(spans, "chat ")
    check_request(request, "chat", traced.cluster.model, answer.json()["usage"]["prompt_tokens"], 2)
    # Between the two is the gateway's own client.
    by_id = {span.id: span for span in spans}
    between = by_id.get(request.parent)
    assert between and (between.id == gateway.id or (between.kind, between.parent) == ("CLIENT", gateway.id))
    check_steps(spans, request)


def test_a_request_that_moves_is_one_trace(traced):
    """Its steps are those of both groups, with all their ranks; the move is a span, and log lines carry the trace."""
    cluster = traced.cluster
    trace, _, headers = traced.parent()
    stream = cluster.start([4, 5, 6], cluster.http, headers, max_tokens=250)
    (sequence,) = cluster.await_status(lambda status: status["sequences"], "it runs")["sequences"]
    moved = cluster.migrate(sequence["request_id"], 1 - sequence["group"])
    assert moved.returncode == 0, moved.stderr
    stream.read()

    def has_all(spans):
        return named(spans, "text_completion ") and named(spans, "transfer") and is_whole(spans)

    spans = traced.collector.await_spans(trace, has_all, "both groups' steps")
    request = one(spans, "text_completion ")
    check_steps(spans, request)
    assert {step.attributes["kvasir.group"] for step in named(spans, "step")} == set(RANKS)
    transfer = one(spans, "transfer")
    assert (transfer.parent, transfer.service) == (request.id, "kvasir-coordinator")
    assert transfer.attributes["kvasir.source_group"] == sequence["group"]
    assert transfer.attributes["kvasir.target_group"] == 1 - sequence["group"]
    assert (transfer.attributes["kvasir.reason"], transfer.attributes["kvasir.outcome"]) == ("order", "moved")
    assert transfer.attributes["kvasir.cells"] > 0 and transfer.attributes["kvasir.pause_us"] > 0
    lines = [line for line in cluster.coordinator.log_lines() if line["fields"].get("message") == "sequence moved"]
    (line,) = [line for line in lines if line["fields"]["request"] == sequence["request_id"]]
    assert (line.get("trace_id"), line.get("span_id")) == (trace, request.id)


def test_a_step_links_all_that_it_serves(traced):
    """Two requests of a group are computed together: their steps are in the trace of one, with links to both."""
    cluster = traced.cluster
    (first, _, headers), (second, _, others) = traced.parent(), traced.parent()
    long = cluster.start([4, 5], cluster.http, headers, max_tokens=300)
    busy = cluster.await_status(lambda status: status["sequences"], "it runs")["sequences"][0]["group"]
    other = cluster.start([4, 5, 6], cluster.http, others, max_tokens=300)

    def together(status):
        return {sequence["request_id"]: sequence["group"] for sequence in status["sequences"]}

    placed = together(cluster.status())
    for request, group in placed.items():
        if group != busy:
            assert cluster.migrate(request, busy).returncode == 0
    long.read(), other.read()

    def shared():
        spans = traced.collector.peek(first) + traced.collector.peek(second)
        steps = [span for span in named(spans, "step") if len(span.links) == 2]
        return steps if {one.name for one in spans} >= {"stream"} and steps else None

    steps = until(shared, "a step with two links")
    for step in steps:
        assert {trace for trace, _ in step.links} == {first, second}
        assert step.attributes["kvasir.sequences"] == 2
        assert step.trace in (first, second)


def test_a_request_that_is_not_to_be_traced_is_not(traced):
    """The flag of its trace decides, also where a gateway traces whatever comes without one."""
    trace, _, headers = traced.parent("00")
    for url in (traced.always.http, traced.never.http, traced.cluster.http):
        assert traced.cluster.complete([1, 2], url, headers).status_code == 200
    traced.fence()
    assert traced.collector.peek(trace) == []


def test_a_request_without_a_trace_gets_one_by_the_ratio(traced):
    traced.fence()
    before = traced.collector.traces()
    for url in (traced.never.http, traced.cluster.http):
        assert traced.cluster.complete([1, 2], url).status_code == 200
    fence = traced.fence()
    assert traced.collector.traces() - before == {fence}
    assert traced.cluster.complete([1, 2], traced.always.http).status_code == 200
    (trace,) = until(lambda: traced.collector.traces() - before - {fence}, "a trace of its own")
    spans = traced.collector.await_spans(trace, lambda spans: named(spans, "POST ") and is_whole(spans), "all of it")
    assert one(spans, "POST /v1/completions").parent == ""


@pytest.mark.parametrize("header", ["", "nonsense", "00-zz-00-01", f"00-{'0' * 32}-{'0' * 16}-01"])
def test_a_header_that_is_no_trace_is_nothing(traced, header):
    response = traced.cluster.complete([1, 2], traced.never.http, {"traceparent": header})
    assert response.status_code == 200


def test_a_refused_request_says_why_in_its_span(traced):
    trace, _, headers = traced.parent()
    assert traced.cluster.complete([1] * 9000, traced.never.http, headers).status_code == 400
    spans = traced.collector.await_spans(trace, lambda spans: len(named(spans, "text_completion ")) == 1, "its span")
    request = one(spans, "text_completion ")
    assert request.attributes["error.type"] == "invalid_argument"
    assert request.status == "ERROR"


def test_what_cannot_be_sent_is_dropped(folder):
    """No collector is there: answers come, and what could not be sent is forgotten when there is one."""
    place = free_address()
    lost = ["--otlp", f"http://{place}", "--trace-ratio", 0]
    # So that all that is sent are spans.
    never = {"OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
    cluster = Cluster(folder / "lost", [1], lost, lost, log="info,tonic=debug", **never)

    def ask(digit):
        headers = {"traceparent": f"00-{digit * 32}-{digit * 16}-01"}
        assert cluster.complete([1, 2], headers=headers, max_tokens=20).status_code == 200

    def tries():
        return [process.log().count("error: tcp connect error") for process in cluster.processes()]

    def tried():
        # A batch is tried a few times, and the next one only when that is over.
        ask("2")
        return all(now - then >= TRIES for now, then in zip(tries(), before))

    before = tries()
    ask("1")
    until(tried, "each has tried to send, and given up")
    collector = Collector(folder, "traces", "late", grpc=place)

    def come():
        ask("3")
        return {span.service for span in collector.peek("3" * 32)} == {"kvasir-coordinator", "kvasir-worker"}

    until(come, "spans of what came later")
    assert set(cluster.stop().values()) == {0}
    collector.stop()
    assert "1" * 32 not in {span.trace for span in collector.flush().spans}


def test_a_process_ends_without_a_collector(folder):
    """Where one refuses, and where one takes connections and says nothing."""
    with socket.socket() as mute, ThreadPoolExecutor() as pool:
        mute.bind(("127.0.0.1", 0))
        mute.listen(64)
        places = {"away": free_address(), "mute": "127.0.0.1:%d" % mute.getsockname()[1]}
        cases = [("away", "http"), ("mute", "grpc"), ("mute", "http")]
        ended = [pool.submit(_ends, folder / "-".join(case), places[case[0]], case[1]) for case in cases]
        for case, statuses in zip(cases, ended):
            assert set(statuses.result().values()) == {0}, case


def _ends(folder, place, protocol):
    lost = ["--otlp", f"http://{place}", "--otlp-protocol", protocol, "--trace-ratio", 1]
    cluster = Cluster(folder, [1], lost, lost)
    assert cluster.complete([1, 2, 3], max_tokens=8).status_code == 200
    return cluster.stop(STOP_MAX_S)
