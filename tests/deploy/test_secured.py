"""The set `secrets` as processes: certificates and keys as docs/operate.md makes them, probes that need neither."""

import json
import shutil
import ssl

import httpx
import pytest

from cluster import running
from kubelet import HOST
from tools import run


@pytest.fixture(scope="module")
def folder(binary, tmp_path_factory):
    """What the secrets hold, as it is mounted: tls/ for coordinators, workers/ for workers, keys/."""
    folder = tmp_path_factory.mktemp("secrets")
    ids = [f"kvasir-workers-{ordinal}" for ordinal in range(3)]
    run(binary, "certs", folder / "certs", "--workers", ",".join(ids))
    pairs = [("coordinator", "tls/tls")] + [(f"worker-{name}", f"workers/{name}") for name in ids]
    for made, mounted in pairs:
        for made_ending, mounted_ending in ((".pem", ".crt"), (".key", ".key")):
            _copy(folder / "certs" / (made + made_ending), folder / (mounted + mounted_ending))
    for place in ("tls", "workers"):
        _copy(folder / "certs" / "ca.pem", folder / place / "ca.crt")
    (folder / "keys").mkdir()
    return folder


def _copy(source, target):
    target.parent.mkdir(exist_ok=True)
    shutil.copy(source, target)


@pytest.fixture(scope="module")
def key(binary, folder):
    line = run(binary, "key", "ada", "--add-to", folder / "keys" / "keys.jsonl", "--json")
    return json.loads(line)["key"]


@pytest.fixture(scope="module")
def coordinator(binary, model, folder, key):
    folders = {
        "coordinator": {"/etc/kvasir/tls": str(folder / "tls"), "/etc/kvasir/keys": str(folder / "keys")},
        "worker": {"/etc/kvasir/tls": str(folder / "workers")},
    }
    with running("secrets", binary, model, folders) as (coordinators, _):
        yield coordinators.pods[0]


def test_nothing_is_let_in_by_a_flag(coordinator):
    assert not any(part == "--insecure" for part in coordinator.command())


def test_who_has_a_key_is_answered_and_who_has_none_is_not(coordinator, folder, key):
    url = f"https://{HOST}:{coordinator.ports['http']}/v1/completions"
    body = {"model": "small", "prompt": "A fjord is", "max_tokens": 4, "temperature": 0}
    with httpx.Client(verify=ssl.create_default_context(cafile=folder / "tls" / "ca.crt"), timeout=60) as client:
        refused = client.post(url, json=body)
        answered = client.post(url, json=body, headers={"authorization": f"Bearer {key}"})
    assert refused.status_code == 401
    assert answered.status_code == 200 and answered.json()["choices"][0]["text"]
