"""A rolling update of the workers, as Kubernetes does it, while sixteen clients read: no answer fails, none changes."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import metrics
from cluster import running
from kubelet import Place, StatefulSet
from streams import PROMPTS, Streams, answer


@pytest.fixture(scope="module")
def cluster(binary, model):
    with running("rollout", binary, model) as cluster:
        yield cluster


def samples(pod):
    """What /metrics says, by name and labels as they are written there."""
    text = httpx.get(f"{pod.url('metrics')}/metrics", timeout=10).raise_for_status().text
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def total(found, name, **labels):
    """Sum over the series of that name that carry these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for series, value in found.items()
        if series.partition("{")[0] == name and all(part in series for part in wanted)
    )


def test_a_rolling_update_drops_nothing_and_changes_nothing(cluster):
    coordinators, workers = cluster
    (coordinator,) = coordinators.pods
    url = coordinator.url("http")
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        expected = dict(zip(PROMPTS, pool.map(lambda prompt: answer(url, prompt), PROMPTS)))
    assert len({text for text, _, _ in expected.values()}) == len(PROMPTS)
    before = samples(coordinator)
    old = {pod.process.pid for pod in workers.pods}

    with Streams(url, expected) as streams:
        ended = workers.roll()

    assert not streams.failed, streams.failed[:3]
    assert not streams.wrong, streams.wrong[:1]
    assert streams.answered >= len(PROMPTS)
    assert {pod.process.pid for pod in ended} == old
    assert not old & {pod.process.pid for pod in workers.pods}
    for pod in ended:
        assert pod.exit_status == 0, f"{pod.name} ended with {pod.exit_status} after {pod.end_took_s} s: {pod.said()}"
        assert pod.end_took_s < pod.spec["terminationGracePeriodSeconds"]
    for pod in [coordinator, *ended, *workers.pods]:
        assert not pod.liveness_failures, f"{pod.name} would have been restarted"

    after = samples(coordinator)
    moved = {
        "reshards": total(after, "kvasir_reshards_total", outcome="switched")
        - total(before, "kvasir_reshards_total", outcome="switched"),
        "migrations": total(after, "kvasir_migrations_total", outcome="moved")
        - total(before, "kvasir_migrations_total", outcome="moved"),
    }
    print(f"{streams.answered} answers, {moved}, drains took {[round(pod.end_took_s, 1) for pod in ended]} s")
    assert sum(moved.values()) >= len(ended)
    for name in ("kvasir_ranks_lost_total", "kvasir_tokens_recomputed_total", "kvasir_cells_corrupt_total"):
        assert total(after, name) == total(before, name), name


@pytest.fixture(scope="module")
def gateway(cluster, binary):
    coordinators, _ = cluster
    place = Place(None, {"gateway": binary})
    place.moved = coordinators.place.moved
    gateways = StatefulSet("rollout", "kvasir-gateway", place, kind="Deployment")
    try:
        gateways.start()
        gateways.await_ready()
        yield gateways.pods[0]
    finally:
        gateways.kill()


def test_the_only_coordinator_is_replaced_and_the_gateway_s_answers_go_on(cluster, gateway):
    """Those that run. Who comes while there is none is told so."""
    coordinators, workers = cluster
    url = gateway.url("http")
    expected = {prompt: answer(url, prompt) for prompt in PROMPTS[:8]}
    with Streams(url, expected, is_patient=True) as streams:
        ended = coordinators.roll()
        workers.await_ready()
    assert [pod.exit_status for pod in ended] == [0]
    assert not streams.failed, streams.failed[:3]
    assert not streams.wrong, streams.wrong[:1]
    assert streams.answered >= len(expected)
    assert not gateway.liveness_failures


def test_probes_say_who_can_work(cluster):
    """Workers that have no coordinator are alive and not ready."""
    coordinators, workers = cluster
    for pod in [*coordinators.pods, *workers.pods]:
        assert pod.probe("livenessProbe") and pod.probe("readinessProbe"), pod.name


def test_metrics_are_the_ones_that_are_listed(cluster):
    coordinators, workers = cluster
    known = {metric.name: metric for metric in metrics.listed()}
    for pod in [*coordinators.pods, workers.pods[0]]:
        text = httpx.get(f"{pod.url('metrics')}/metrics", timeout=10).text
        kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
        assert kinds, pod.name
        for name, kind in kinds.items():
            if name in known:
                assert known[name].kind == kind, name
            else:
                # A counter of the status, or something of OpenTelemetry's own.
                assert (name.startswith("kvasir_") and kind == "counter") or name in (
                    "target_info",
                    "otel_scope_info",
                ), name
