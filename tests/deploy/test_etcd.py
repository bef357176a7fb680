"""The set `etcd-bundled` as processes: members that find each other, and coordinators that replace each other."""

import time

import httpx
import pytest

from cluster import running
from kubelet import HOST, Place, StatefulSet
from streams import PROMPTS, Streams, answer
from test_rollout import samples
from tools import found, run

VALUES = "etcd-bundled"
WAIT_MAX_S = 60


@pytest.fixture(scope="module")
def etcd(tmp_path_factory):
    """Its members. Their probes are of etcd 3.6, and an older one may be here: they are not asked by these."""
    place = Place(None, {"etcd": found("etcd")})
    members = StatefulSet(VALUES, "kvasir-etcd", place)
    folder = tmp_path_factory.mktemp("etcd")
    try:
        for pod in members.pods:
            # Each has a volume of its own.
            place.moved["/data/etcd"] = str(folder / pod.name)
            pod.start()
        yield members
    finally:
        members.kill()


def until(holds, what, seconds=WAIT_MAX_S):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so: {what()}"
        time.sleep(0.1)


def test_the_members_find_each_other(etcd):
    urls = ",".join(f"http://{HOST}:{pod.ports['client']}" for pod in etcd.pods)
    until(lambda: all(_is_healthy(pod) for pod in etcd.pods), lambda: etcd.pods[0].said())
    listed = run(found("etcdctl"), f"--endpoints={urls}", "member", "list", env={"ETCDCTL_API": "3"})
    assert sorted(line.split(", ")[2] for line in listed.splitlines()) == sorted(pod.name for pod in etcd.pods)


def _is_healthy(pod):
    try:
        # At the port that probes ask.
        return httpx.get(f"http://{HOST}:{pod.ports['metrics']}/health", timeout=2).json()["health"] == "true"
    except (httpx.HTTPError, ValueError):
        return False


@pytest.fixture(scope="module")
def cluster(binary, model, etcd):
    addresses = dict(etcd.pods[0].place.moved)
    with running(VALUES, binary, model, {"coordinator": addresses, "worker": addresses}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def gateway(cluster, binary):
    """One of them."""
    place = Place(None, {"gateway": binary})
    place.moved = cluster[0].place.moved
    gateways = StatefulSet(VALUES, "kvasir-gateway", place, kind="Deployment")
    pod = gateways.pods[0]
    try:
        pod.start()
        pod.await_ready()
        yield pod
    finally:
        pod.kill()


def leaders(pods):
    return [pod for pod in pods if pod.exit_status is None and samples(pod).get("kvasir_leader") == 1]


def served(pod):
    """What the model is called."""
    return httpx.get(f"{pod.url('http')}/v1/models", timeout=30).json()["data"][0]["id"]


def ask(pod, prompt):
    return answer(pod.url("http"), prompt, served(pod))


def test_every_coordinator_answers_and_one_leads(cluster):
    coordinators, _ = cluster
    assert len(leaders(coordinators.pods)) == 1
    assert all(samples(pod)["kvasir_registry_connected"] == 1 for pod in coordinators.pods)
    answers = [ask(pod, PROMPTS[0]) for pod in coordinators.pods]
    assert answers[0] == answers[1] == answers[2]


def test_another_one_leads_when_the_leader_is_gone(cluster):
    coordinators, workers = cluster
    (leader,) = leaders(coordinators.pods)
    expected = ask(leader, PROMPTS[1])
    leader.kill()
    others = [pod for pod in coordinators.pods if pod is not leader]
    until(lambda: len(leaders(others)) == 1, lambda: others[0].said())
    until(lambda: all(pod.probe("readinessProbe") for pod in [*others, *workers.pods]), lambda: others[0].said())
    assert [ask(pod, PROMPTS[1]) for pod in others] == [expected, expected]
    coordinators.replace(coordinators.pods.index(leader))
    coordinators.await_ready()
    assert len(leaders(coordinators.pods)) == 1


def test_answers_through_a_gateway_outlive_every_coordinator(cluster, gateway):
    """First the one that leads dies, then all are replaced: which ends only if those that stand by are ready."""
    coordinators, workers = cluster
    url, model = gateway.url("http"), served(gateway)
    expected = {prompt: answer(url, prompt, model) for prompt in PROMPTS[:8]}
    with Streams(url, expected, model) as streams:
        (leader,) = leaders(coordinators.pods)
        leader.kill()
        coordinators.replace(coordinators.pods.index(leader))
        coordinators.await_ready()
        ended = coordinators.roll()
        workers.await_ready()
    assert [pod.exit_status for pod in ended] == [0, 0, 0]
    assert not streams.failed, streams.failed[:3]
    assert not streams.wrong, streams.wrong[:1]
    assert streams.answered >= len(expected)
