"""A known load, and the counts that follow from it: exactly those, for Prometheus and for a collector.

Answers are of a given length, and one is computed at a time; so every number but a duration can be told beforehand.
"""

from collections import Counter
from dataclasses import dataclass, field

import pytest

from cluster import Cluster
from collector import Collector
from exposition import key, parse, value
from waiting import until

BLOCK = 16
# Of the first prompt, two blocks are found again.
FIRST = [100 + nth for nth in range(40)]
SECOND = FIRST[: 2 * BLOCK] + [7, 8, 9]
HELD = [200 + nth for nth in range(5)]
CHAT = "chat"
COMPLETION = "text_completion"
# An hour
NEVER = {"OTEL_METRIC_EXPORT_INTERVAL": "3600000"}
SERIES = {"gen_ai_provider_name": "kvasir"}


@dataclass
class Ledger:
    """What was asked, and what is to be counted for it."""

    model: str
    counted: Counter = field(default_factory=Counter)

    def add(self, name, number=1, **labels):
        self.counted[key(name, **labels)] += number

    def answered(self, prompt, outputs, cached=0, operation=COMPLETION, reason="length"):
        """A request that got its answers, of so many tokens each. Later ones find what the first has computed."""
        of = self._request(operation)
        self._ended(of, prompt, sum(outputs))
        self.add("gen_ai_server_time_to_first_token_seconds_count", **of)
        if sum(outputs) > 1:
            self.add("gen_ai_server_time_per_output_token_seconds_count", **of)
        for nth, output in enumerate(outputs):
            # The last token of a prompt is computed in any case, so a block that is not full yet is not found.
            found = cached if nth == 0 else (prompt - 1) // BLOCK * BLOCK
            self._ran(prompt, output, found)
            self.add("kvasir_requests_total", finish_reason=reason)
            self.add("kvasir_answers_finished_total")

    def cancelled_in_queue(self, prompt):
        of = self._request(COMPLETION)
        self._ended({**of, "error_type": "cancelled"}, prompt, 0, of)
        # It was taken in; no step was computed of it, so it is in no histogram of phases.
        self.add("kvasir_answers_submitted_total")
        self.add("kvasir_prompt_tokens_total", prompt)
        self.add("kvasir_answers_finished_total")
        self.add("kvasir_answers_cancelled_total")
        self.add("kvasir_requests_total", finish_reason="cancelled")
        self.add("kvasir_request_outcomes_total", outcome="EvictedContextCancelled")

    def shed(self, prompt):
        of = self._request(COMPLETION)
        self._ended({**of, "error_type": "resource_exhausted"}, prompt, 0, of)
        self.add("kvasir_answers_submitted_total")
        self.add("kvasir_answers_failed_total")
        self.add("kvasir_answers_rejected_total")
        self.add("kvasir_requests_total", finish_reason="rejected")
        self.add("kvasir_request_outcomes_total", outcome="RejectedCapacity")

    def refused(self):
        """It has no answer, so it is one request and nothing else."""
        of = self._request(COMPLETION)
        self.add("gen_ai_server_request_duration_seconds_count", **of, error_type="invalid_argument")

    def _request(self, operation):
        return {**SERIES, "gen_ai_operation_name": operation, "gen_ai_request_model": self.model}

    def _ended(self, of, prompt, output, tokens_of=None):
        self.add("gen_ai_server_request_duration_seconds_count", **of)
        for kind, number in (("input", prompt), ("output", output)):
            tokens = {**(tokens_of or of), "gen_ai_token_type": kind}
            self.add("gen_ai_client_token_usage_count", **tokens)
            self.add("gen_ai_client_token_usage_sum", number, **tokens)

    def _ran(self, prompt, output, found):
        self.add("kvasir_answers_submitted_total")
        self.add("kvasir_request_outcomes_total", outcome="Dispatched")
        self.add("kvasir_prompt_tokens_total", prompt)
        self.add("kvasir_generation_tokens_total", output)
        self.add("kvasir_prefix_cache_queries_total", prompt)
        self.add("kvasir_prefix_cache_hits_total", found)
        self.add("kvasir_inter_token_latency_seconds_count", output - 1)
        for phase in ("queue", "prefill", "decode"):
            self.add(f"kvasir_request_{phase}_duration_seconds_count")
        # The first step computes the prompt and gives a token; each further one computes the token before.
        self.add("kvasir_steps_total", output)
        for part in ("compute", "reduce", "wait", "schedule", "total"):
            self.add("kvasir_step_duration_seconds_count", output, group=0, part=part)
        self.add("kvasir_step_tokens_count", output, group=0)
        self.add("kvasir_step_tokens_sum", prompt - found + output - 1, group=0)
        self.add("kvasir_step_sequences_count", output, group=0)
        self.add("kvasir_step_sequences_sum", output, group=0)

    def of_worker(self):
        """What each rank counts of it."""
        steps = self.counted[key("kvasir_steps_total")]
        counted = Counter({key("kvasir_worker_steps_total"): steps})
        for part in ("compute", "reduce", "total"):
            counted[key("kvasir_worker_step_duration_seconds_count", part=part)] = steps
        return counted


class Load:
    def __init__(self, folder):
        self.collector = Collector(folder, "metrics")
        flags = ["--otlp", self.collector.grpc, "--sequences", 1, "--queue", 2, "--step-tokens", 512]
        flags += ["--mixed-tokens", 512, "--chunk-tokens", 512]
        http = ["--otlp", self.collector.http, "--otlp-protocol", "http/protobuf"]
        # Of the workers the collector hears once: when they end.
        self.cluster = Cluster(folder, [2], flags, http, worker_environment=NEVER, OTEL_METRIC_EXPORT_INTERVAL="500")
        self.ledger = Ledger(self.cluster.model)
        self.before = self.cluster.samples()
        for act in (self._answers, self._prefix_hit, self._choices, self._chat, self._refuse, self._fill_queue):
            act()
            self.cluster.await_idle()

    def _complete(self, prompt, **fields):
        response = self.cluster.complete(prompt, **fields)
        assert response.status_code == 200, response.text
        return response.json()

    def _answers(self):
        self._complete(FIRST, max_tokens=5)
        self.ledger.answered(len(FIRST), [5])

    def _prefix_hit(self):
        self._complete(SECOND, max_tokens=3)
        self.ledger.answered(len(SECOND), [3], cached=2 * BLOCK)
        self.ledger.add("kvasir_routed_by_prefix_total")

    def _choices(self):
        self._complete([9, 8, 7], max_tokens=4, n=2)
        self.ledger.answered(3, [4, 4])

    def _chat(self):
        body = {"model": self.cluster.model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
        body |= {"ignore_eos": True, "temperature": 0}
        answer = self.cluster.client.post(f"{self.cluster.http}/v1/chat/completions", json=body).json()
        prompt = answer["usage"]["prompt_tokens"]
        self.ledger.answered(prompt, [2], operation=CHAT)

    def _refuse(self):
        assert self.cluster.complete([1] * 9000).status_code == 400
        self.ledger.refused()

    def _fill_queue(self):
        """One runs and two wait, so the next is refused. One of the two goes away, and the others end."""
        cluster = self.cluster
        running = cluster.start(HELD, max_tokens=500)
        waiting = [self._wait([300 + nth, 1, 2], nth + 1) for nth in range(2)]
        refused = cluster.complete([400, 1], max_tokens=1)
        assert refused.status_code == 429, refused.text
        waiting[1].drop()
        self._await_waiting(1)
        running.read()
        waiting[0].read()
        self.ledger.answered(len(HELD), [500])
        self.ledger.answered(3, [2])
        self.ledger.shed(2)
        self.ledger.cancelled_in_queue(3)

    def _wait(self, prompt, count):
        stream = self.cluster.send(prompt, max_tokens=2)
        self._await_waiting(count)
        return stream

    def _await_waiting(self, count):
        self.cluster.await_status(lambda status: status["groups"][0]["waiting"] == count, f"{count} wait")

    def grown(self, found):
        """What came since the start, of all that counts: counters, and histograms' counts and sums of numbers."""
        grown = {}
        for (name, labels), number in found.items():
            counts = name.endswith(("_total", "_count")) or name in SUMS
            if counts and number != value(self.before, name, **dict(labels)):
                grown[name, labels] = number - value(self.before, name, **dict(labels))
        return grown


# Sums of tokens and sequences; others are of seconds.
SUMS = {"gen_ai_client_token_usage_sum", "kvasir_step_tokens_sum", "kvasir_step_sequences_sum"}
# Text is cut into messages as it comes, and bytes of chunks are not told in advance.
UNFORETOLD = {"kvasir_chunks_total"}


def foretold(counted):
    """A series that is not there, and one that has not grown, are the same."""
    return {key: number for key, number in counted.items() if number and key[0] not in UNFORETOLD}


@pytest.fixture(scope="module")
def load(folder):
    load = Load(folder)
    yield load
    load.cluster.stop()
    load.collector.stop()


def test_a_scrape_has_exactly_these_counts(load):
    found = foretold(load.grown(load.cluster.samples()))
    assert differences(found, foretold(load.ledger.counted)) == {}


def test_every_rank_has_exactly_these_counts(load):
    for worker in load.cluster.workers.values():
        found = load.cluster.samples(worker.metrics)
        counts = {key: number for key, number in found.items() if key[0].endswith(("_total", "_count")) and number}
        assert counts == foretold(load.ledger.of_worker()), worker.name


def test_buckets_add_up(load):
    for name, family in parse(load.cluster.text()).items():
        if family.kind != "histogram":
            continue
        for series in family.series():
            buckets = [
                number
                for (of, labels), number in family.samples.items()
                if of == f"{name}_bucket" and tuple(pair for pair in labels if pair[0] != "le") == series
            ]
            assert buckets == sorted(buckets) and buckets[-1] == family.samples[f"{name}_count", series], name


def differences(found, wanted):
    """Found and wanted, where they differ."""
    both = {key: (found.get(key, 0), wanted.get(key, 0)) for key in found.keys() | wanted.keys()}
    return {key: numbers for key, numbers in both.items() if numbers[0] != numbers[1]}


def test_gauges_are_back_at_rest(load):
    found = load.cluster.samples()
    for name in (
        "kvasir_requests_running",
        "kvasir_requests_waiting",
        "kvasir_kv_cache_usage_ratio",
        "kvasir_transfers_active",
    ):
        assert all(number == 0 for (of, _), number in found.items() if of == name), name
    assert value(found, "kvasir_blocks", group=0, state="held") == 0
    assert value(found, "kvasir_blocks_unaccounted", group=0) == 0
    (blocks,) = (dict(labels)["num_blocks"] for name, labels in found if name == "kvasir_cache_config_info")
    states = ("free", "cached", "held", "in_flight")
    assert sum(value(found, "kvasir_blocks", group=0, state=state) for state in states) == float(blocks)


def test_a_collector_has_the_same_counts(load):
    pid = load.cluster.coordinator.pid
    wanted = foretold(load.ledger.counted)

    def found():
        return foretold(load.grown(load.collector.samples("kvasir-coordinator", pid)))

    until(lambda: found() == wanted, lambda: f"the same counts; {differences(found(), wanted)}")


def test_what_was_not_sent_is_sent_at_the_end(load):
    assert set(load.cluster.stop().values()) == {0}
    load.collector.stop()
    load.collector.flush()
    for worker in load.cluster.workers.values():
        found = load.collector.samples("kvasir-worker", worker.pid)
        counts = {key: number for key, number in found.items() if key[0].endswith(("_total", "_count")) and number}
        assert counts == foretold(load.ledger.of_worker()), worker.name
