"""Workers that come and go with the queue, while clients read: groups take them in and let them go."""

import time

import pytest

from cluster import running
from streams import PROMPTS, Streams, answer
from test_rollout import samples, total

WAIT_MAX_S = 60


@pytest.fixture(scope="module")
def cluster(binary, model):
    with running("scaling", binary, model) as cluster:
        yield cluster


def await_ranks(pod, ranks):
    deadline = time.monotonic() + WAIT_MAX_S
    while (found := total(samples(pod), "kvasir_group_ranks")) != ranks:
        assert time.monotonic() < deadline, f"{found} ranks, not {ranks}: {pod.said()}"
        time.sleep(0.2)


def test_a_group_grows_and_shrinks_under_way(cluster):
    coordinators, workers = cluster
    (coordinator,) = coordinators.pods
    url = coordinator.url("http")
    expected = {prompt: answer(url, prompt) for prompt in PROMPTS[:8]}
    await_ranks(coordinator, 1)
    before = samples(coordinator)
    with Streams(url, expected) as streams:
        workers.scale(3)
        await_ranks(coordinator, 3)
        ended = workers.scale(1)
        await_ranks(coordinator, 1)
    assert not streams.failed, streams.failed[:3]
    assert not streams.wrong, streams.wrong[:1]
    assert [pod.exit_status for pod in ended] == [0, 0]
    after = samples(coordinator)
    for name in ("kvasir_ranks_lost_total", "kvasir_tokens_recomputed_total"):
        assert total(after, name) == total(before, name), name
