"""compose.yaml and what it mounts: nothing runs it here, so it is held against itself."""

import re

import yaml

from tools import CHART, DEPLOY, promtool

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
KVASIR = {name: service for name, service in SERVICES.items() if "build" in service}
KEYS = {
    "build", "cap_drop", "command", "environment", "healthcheck", "image", "networks", "ports", "read_only", "restart",
    "security_opt", "stop_grace_period", "volumes",
}  # fmt: skip


def test_services_are_told_what_compose_knows():
    assert COMPOSE.keys() - {"x-kvasir", "x-worker"} == {"name", "services", "networks", "volumes"}
    for name, service in SERVICES.items():
        assert service.keys() <= KEYS, name
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), f"{name} has no version"


def test_everything_that_is_mounted_is_there():
    for name, service in SERVICES.items():
        for volume in service.get("volumes", []):
            if isinstance(volume, dict):
                # The model, which its user names.
                assert volume["source"].startswith("${KVASIR_MODEL_FILE:?") and volume["read_only"], name
                continue
            source, target, *options = volume.split(":")
            if source.startswith("./"):
                assert (DEPLOY / source).exists() and options == ["ro"], f"{name}: {source}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {source}"


def test_ports_are_published_on_loopback_alone_and_once():
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert len({port.split(":")[1] for port in published}) == len(published)


def test_workers_say_the_address_that_they_have():
    for name, service in KVASIR.items():
        assert service["read_only"] and service["cap_drop"] == ["ALL"]
        address = service["networks"]["cluster"]["ipv4_address"]
        (subnet,) = COMPOSE["networks"]["cluster"]["ipam"]["config"]
        assert address.rpartition(".")[0] == subnet["subnet"].rpartition(".")[0]
        if service["command"][0] == "worker":
            assert f"--advertise={address}" in service["command"] and f"--id={name}" in service["command"]
            assert "--grace=30" in service["command"] and service["stop_grace_period"] == "40s"


def test_what_is_called_by_name_is_there():
    text = "".join(" ".join(service.get("command", [])) for service in SERVICES.values())
    for file in ("prometheus.yaml", "otel-collector.yaml", "grafana/provisioning/datasources/kvasir.yaml"):
        text += (DEPLOY / file).read_text()
    hosts = set(re.findall(r"https?://([a-z][-a-z0-9]*):\d+", text)) | set(
        re.findall(r"\"([a-z][-a-z0-9]*):9090\"", text)
    )
    assert hosts and hosts <= SERVICES.keys(), hosts - SERVICES.keys()


def test_prometheus_takes_its_configuration(tmp_path):
    text = (DEPLOY / "prometheus.yaml").read_text()
    (tmp_path / "prometheus.yaml").write_text(text.replace("/etc/prometheus/alerts.yaml", str(CHART / "alerts.yaml")))
    promtool("check", "config", tmp_path / "prometheus.yaml")


def test_prometheus_asks_every_process_under_the_names_that_alerts_go_by():
    jobs = {
        job["job_name"]: {target.split(":")[0] for config in job["static_configs"] for target in config["targets"]}
        for job in yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    }
    roles = {}
    for name, service in KVASIR.items():
        roles.setdefault(f"kvasir-{service['command'][0]}", set()).add(name)
        assert "--metrics=0.0.0.0:9090" in service["command"]
    assert jobs == roles


def test_the_collector_uses_what_it_configures():
    config = yaml.safe_load((DEPLOY / "otel-collector.yaml").read_text())
    used = {kind: set() for kind in ("receivers", "processors", "exporters")}
    for pipeline in config["service"]["pipelines"].values():
        for kind, names in used.items():
            names |= set(pipeline[kind])
    assert used == {kind: set(config[kind]) for kind in used}
    ports = {protocol["endpoint"].split(":")[1] for protocol in config["receivers"]["otlp"]["protocols"].values()}
    for service in KVASIR.values():
        (endpoint,) = [part for part in service["command"] if part.startswith("--otlp=")]
        assert endpoint.rpartition(":")[2] in ports
