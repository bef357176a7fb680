"""A real Prometheus looks at a running cluster by deploy/prometheus.yaml: every panel has an answer, no alert fires."""

import subprocess
import threading
import time

import httpx
import pytest
import yaml

from cluster import running
from kubelet import HOST, free_port
from streams import PROMPTS, answer
from test_dashboards import expressions, filled
from tools import CHART, DEPLOY, found

WAIT_MAX_S = 60
# Of what did not happen, what needs etcd, and what is firing: nothing, as it should be.
MAY_BE_EMPTY = (
    "kvasir_migration_pause_seconds",
    "kvasir_reshard_pause_seconds",
    "kvasir_detection_duration_seconds",
    "kvasir_recovery_duration_seconds",
    "kvasir_leader",
    "kvasir_registry_connected",
    "kvasir_worker_cells_",
    "ALERTS",
    "kvasir_ranks_lost_total",
    "kvasir_reshards_total",
)


@pytest.fixture(scope="module")
def pods(binary, model):
    with running("rollout", binary, model) as (coordinators, workers):
        yield {"kvasir-coordinator": coordinators.pods, "kvasir-worker": workers.pods}


@pytest.fixture(scope="module")
def prometheus(pods, tmp_path_factory):
    """The URL of one that has looked for a while at a cluster that talks."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    config["rule_files"] = [str(CHART / "alerts.yaml")]
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        targets = [f"{HOST}:{pod.ports['metrics']}" for pod in pods[job["job_name"]]]
        job["static_configs"] = [entry | {"targets": targets} for entry in job["static_configs"]]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    url = f"http://{HOST}:{free_port()}"
    command = [found("prometheus"), f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen([*command, f"--web.listen-address={url.removeprefix('http://')}"], stderr=log)
    try:
        _until(
            lambda: len(_targets(url)) == 4 and all(each["health"] == "up" for each in _targets(url)), folder / "log"
        )
        _talk(pods["kvasir-coordinator"][0].url("http"))
        # Two more scrapes, so that rates see what there was.
        time.sleep(3)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def _targets(url):
    try:
        return httpx.get(f"{url}/api/v1/targets").json()["data"]["activeTargets"]
    except (httpx.HTTPError, ValueError):
        # Not listening, or not ready, yet.
        return []


def _until(holds, log):
    deadline = time.monotonic() + WAIT_MAX_S
    while not holds():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.2)


def _talk(url):
    """For some seconds, with the same beginning again and again."""
    for _ in range(3):
        threads = [threading.Thread(target=answer, args=(url, prompt)) for prompt in PROMPTS[:4]]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_every_expression_has_an_answer(prometheus):
    empty = []
    for name, expression in expressions():
        answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": filled(expression)}).json()
        assert answer["status"] == "success", f"{name}: {answer}"
        if not answer["data"]["result"] and not any(part in expression for part in MAY_BE_EMPTY):
            empty.append(f"{name}: {expression}")
    assert not empty, "\n".join(empty)


def test_results_are_told_apart_by_what_legends_name(prometheus):
    """Two series with one legend would look like one."""
    query = 'sum by (group, state) (kvasir_blocks{kvasir_cluster=~".*",group=~".*"})'
    result = httpx.get(f"{prometheus}/api/v1/query", params={"query": query}).json()["data"]["result"]
    assert {series["metric"]["state"] for series in result} == {"free", "cached", "held", "in_flight"}


def test_no_alert_fires_and_every_rule_is_evaluated(prometheus):
    rules = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"][0]["rules"]
    assert len(rules) > 15
    for rule in rules:
        assert rule["health"] == "ok", rule
        assert rule["state"] == "inactive", rule
