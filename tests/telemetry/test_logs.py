"""Log lines as JSON, and what an operator changes of them while a cluster runs."""

import json

import pytest

from cluster import Cluster, kvasir
from waiting import until

TRACE, SPAN = "5" * 32, "6" * 16


@pytest.fixture(scope="module")
def cluster(folder):
    # Spans are recorded nowhere, and the lines carry the trace all the same.
    cluster = Cluster(folder, [1, 1], ["--no-rebalance"], log="info")
    yield cluster
    assert set(cluster.stop().values()) == {0}


def set_filter(cluster, filter, *flags):
    return kvasir("log", filter, "--endpoint", cluster.grpc, *flags)


def move(cluster, headers=None):
    """A request that goes to the other group. Returns its id."""
    stream = cluster.start([4, 5, 6], headers=headers, max_tokens=250)
    (sequence,) = cluster.await_status(lambda status: status["sequences"], "it runs")["sequences"]
    moved = cluster.migrate(sequence["request_id"], 1 - sequence["group"])
    assert moved.returncode == 0, moved.stderr
    stream.drop()
    cluster.await_idle()
    return sequence["request_id"]


def about(cluster, request):
    """Lines of the coordinator, by message."""
    lines = [line for line in cluster.coordinator.log_lines() if line["fields"].get("request") == request]
    return {line["fields"]["message"]: line for line in lines}


def test_every_line_is_an_object(cluster):
    for process in cluster.processes():
        lines = process.log().splitlines()
        assert lines
        for line in lines:
            assert json.loads(line).keys() >= {"timestamp", "level", "target", "fields"}, f"{process.name}: {line}"


def test_a_line_about_a_request_carries_its_trace(cluster):
    request = move(cluster, {"traceparent": f"00-{TRACE}-{SPAN}-01"})
    line = about(cluster, request)["sequence moved"]
    assert line["trace_id"] == TRACE and len(line["span_id"]) == 16


def test_a_level_is_changed_while_all_run(cluster):
    assert "sequence moves" not in about(cluster, move(cluster)), "that is a line for those who debug"
    changed = set_filter(cluster, "info,kvasir_coordinator=debug", "--json")
    assert changed.returncode == 0, changed.stderr
    assert json.loads(changed.stdout) == {"filter": "info,kvasir_coordinator=debug", "workers": 2}
    line = about(cluster, move(cluster))["sequence moves"]
    assert line["level"] == "DEBUG"
    for worker in cluster.workers.values():
        until(lambda: "log filter changed" in worker.log(), f"{worker.name} has changed its filter")
    assert set_filter(cluster, "info").returncode == 0
    assert "sequence moves" not in about(cluster, move(cluster))


def test_workers_fall_silent_too(cluster):
    """Their line about a filter is written by the one that holds then."""

    def told():
        return [worker.log().count("log filter changed") for worker in cluster.workers.values()]

    def set_and_see(filter):
        before = told()
        assert set_filter(cluster, filter).returncode == 0
        until(lambda: all(now > then for now, then in zip(told(), before)), "they say so")

    set_and_see("info")
    before = told()
    assert set_filter(cluster, "error").returncode == 0
    set_and_see("info")
    assert [now - then for now, then in zip(told(), before)] == [1, 1]


@pytest.mark.parametrize("filter", ["kvasir=loud", "=", "a=b=c"])
def test_what_is_no_filter_changes_nothing(cluster, filter):
    assert set_filter(cluster, "info,kvasir_coordinator=debug").returncode == 0
    refused = set_filter(cluster, filter)
    assert refused.returncode != 0
    assert f"`{filter}` is no log filter" in refused.stderr, refused.stderr
    assert "sequence moves" in about(cluster, move(cluster)), "the one before holds"
