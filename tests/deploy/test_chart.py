"""What the chart renders: valid for Kubernetes, as it was, and consistent in itself."""

import json

import jsonschema
import kubernetes_validate
import pytest
import yaml

import chart
from crds import SPECS
from tools import CHART, helm, is_golden

KUBERNETES = "1.35"


def every_set(test):
    return pytest.mark.parametrize("values", chart.SETS)(test)


@every_set
def test_helm_finds_nothing_to_complain_about(values):
    helm("lint", "--strict", CHART, "--values", CHART.parents[2] / "tests/deploy/values" / f"{values}.yaml")


@every_set
def test_every_object_is_valid_without_a_field_too_many(values):
    for found in chart.objects(values):
        check(found)


def check(found):
    schema = SPECS.get((found["apiVersion"], found["kind"]))
    if schema is None:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
        return
    jsonschema.validate(found["spec"], schema)
    assert found["metadata"].keys() <= {"name", "namespace", "labels", "annotations"}
    if found["kind"] == "LeaderWorkerSet":
        # Its pods are Kubernetes' own.
        template = found["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        kubernetes_validate.validate(
            {"apiVersion": "v1", "kind": "PodTemplate", "metadata": {"name": "x"}, "template": template},
            KUBERNETES,
            strict=True,
        )


def test_the_validators_notice_what_is_wrong():
    broken = chart.named("defaults", "StatefulSet", "kvasir-workers")
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError, match="readinesProbe"):
        check(broken)
    broken = chart.of_kind("certificates", "Certificate")[0]
    broken["spec"]["uris"] = ["kvasir://owner/x"]
    with pytest.raises(jsonschema.ValidationError, match="kvasir://owner/x"):
        check(broken)
    broken = chart.of_kind("gpu", "LeaderWorkerSet")[0]
    broken["spec"]["leaderWorkerTemplate"]["restartPolicy"] = "RecreateGroupOnPodRestart"
    with pytest.raises(jsonschema.ValidationError, match="None"):
        check(broken)


@every_set
def test_what_is_rendered_is_what_was_rendered(values):
    documents = [_without_copies(found) for found in chart.objects(values)]
    text = yaml.safe_dump_all(documents, sort_keys=True, width=1000)
    assert is_golden(f"{values}.yaml", text), f"{values} renders something else; KVASIR_WRITE_GOLDEN=1 keeps it"


def _without_copies(found):
    """Of files of the chart, which stand as they are in other objects."""
    if found["kind"] == "ConfigMap":
        return found | {"data": {name: "(the file)" for name in found["data"]}}
    if found["kind"] == "PrometheusRule":
        return found | {"spec": "(the file)"}
    return found


def test_files_of_the_chart_arrive_as_they_are():
    dashboards = {
        name: json.loads(text)
        for found in chart.of_kind("monitoring", "ConfigMap")
        for name, text in found["data"].items()
    }
    files = {path.name: json.loads(path.read_text()) for path in (CHART / "dashboards").glob("*.json")}
    assert dashboards == files and len(files) == 4
    alerts = yaml.safe_load((CHART / "alerts.yaml").read_text())
    (rule,) = chart.of_kind("monitoring", "PrometheusRule")
    assert rule["spec"] == alerts
    text = chart.rendered("--set", "monitoring.alerts.kind=ConfigMap")
    (found,) = [found for found in yaml.safe_load_all(text) if found and found["kind"] == "ConfigMap"]
    assert yaml.safe_load(found["data"]["kvasir-alerts.yaml"]) == alerts


@every_set
def test_every_container_is_confined(values):
    for name, template in chart.pod_templates(values):
        spec = template["spec"]
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] and pod["runAsUser"] > 0, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert spec["automountServiceAccountToken"] is False, name
    for name, container in chart.containers(values):
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name


@every_set
def test_selectors_find_pods_and_ports(values):
    pods = [template for _, template in chart.pod_templates(values)]
    for service in chart.of_kind(values, "Service"):
        selected = _selected(pods, service["spec"]["selector"])
        assert len(selected) == 1, service["metadata"]["name"]
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in _ports(selected[0]), service["metadata"]["name"]
    for policy in chart.of_kind(values, "NetworkPolicy"):
        selected = _selected(pods, policy["spec"]["podSelector"]["matchLabels"])
        assert len(selected) == 1, policy["metadata"]["name"]
        for rule in policy["spec"]["ingress"]:
            for port in rule.get("ports", []):
                assert port["port"] in _ports(selected[0]), policy["metadata"]["name"]
    for budget in chart.of_kind(values, "PodDisruptionBudget"):
        assert len(_selected(pods, budget["spec"]["selector"]["matchLabels"])) == 1
    for monitor in chart.of_kind(values, "PodMonitor"):
        (pod,) = _selected(pods, monitor["spec"]["selector"]["matchLabels"])
        assert {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]} <= _ports(pod)
    for monitor in chart.of_kind(values, "ServiceMonitor"):
        services = [service["metadata"] for service in chart.of_kind(values, "Service")]
        selector = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = [service for service in services if selector <= service["labels"].items()]
        assert service["name"] == "kvasir-coordinators"


def _selected(pods, labels):
    return [pod for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]


def _ports(pod):
    return {port["name"] for container in pod["spec"]["containers"] for port in container.get("ports", [])}


@every_set
def test_what_is_mounted_is_there_and_what_is_there_is_mounted(values):
    claims = {
        f"{found['kind']}/{found['metadata']['name']}": {
            claim["metadata"]["name"] for claim in found["spec"].get("volumeClaimTemplates", [])
        }
        for found in chart.of_kind(values, "StatefulSet")
    }
    for name, template in chart.pod_templates(values):
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", [])} | claims.get(name, set())
        mounts = [
            mount
            for container in spec.get("initContainers", []) + spec["containers"]
            for mount in container.get("volumeMounts", [])
        ]
        assert {mount["name"] for mount in mounts} == volumes, name


@every_set
def test_files_on_command_lines_are_in_mounted_folders(values):
    for name, container in chart.containers(values):
        folders = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        for argument in container.get("args", []) + container.get("command", []):
            path = argument.partition("=")[2]
            if path.startswith("/"):
                assert any(path.startswith(f"{folder}/") for folder in folders), f"{name}: {argument}"


@every_set
def test_a_worker_has_time_to_drain(values):
    for name, template in chart.pod_templates(values):
        for container in template["spec"]["containers"]:
            grace = [argument for argument in container.get("args", []) if argument.startswith("--grace=")]
            if container["name"] == "worker":
                seconds = int(grace[0].removeprefix("--grace="))
                assert template["spec"]["terminationGracePeriodSeconds"] > seconds, name


@every_set
def test_probes_speak_what_the_door_speaks(values):
    for name, container in chart.containers(values):
        probes = [container[kind] for kind in ("startupProbe", "livenessProbe", "readinessProbe") if kind in container]
        if container["name"] in ("coordinator", "worker", "gateway", "etcd"):
            assert len(probes) == 3, name
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in probes:
            if "grpc" in probe:
                encrypted = any(argument.startswith("--tls-cert") for argument in container["args"])
                assert not encrypted, f"{name}: the kubelet's gRPC probes speak no TLS"
            else:
                assert probe["httpGet"]["port"] == "metrics" and "metrics" in ports, name


@every_set
def test_every_worker_has_a_certificate_of_its_own(values):
    """Of those that there are objects or a projection for; secrets of other origin are checked in test_operate."""
    certificates = chart.of_kind(values, "Certificate")
    secrets = {found["spec"]["secretName"]: found["spec"] for found in certificates}
    for _, template in chart.pod_templates(values):
        for volume in template["spec"].get("volumes", []):
            for source in volume.get("projected", {}).get("sources", []):
                secret = source["secret"]
                (certificate,) = [item["path"] for item in secret["items"] if item["key"] == "tls.crt"]
                uris = secrets[secret["name"]]["uris"]
                assert uris == [f"kvasir://worker/{certificate.removesuffix('.crt')}"]
            attributes = volume.get("csi", {}).get("volumeAttributes", {})
            if attributes:
                assert attributes["csi.cert-manager.io/uri-sans"] == "kvasir://worker/${POD_NAME}"
    if certificates:
        (coordinator,) = [found for found in secrets.values() if found.get("uris") == ["kvasir://coordinator"]]
        dialled = [line for arguments in chart.commands(values).values() for line in arguments]
        for argument in dialled:
            flag, _, url = argument.partition("=")
            if flag in ("--coordinator", "--advertise") and url.startswith("https://"):
                assert url.removeprefix("https://").split(":")[0] in coordinator["dnsNames"], argument


def test_etcd_members_name_each_other():
    (container,) = [found for name, found in chart.containers("etcd-bundled") if name.endswith("/etcd")]
    (peers,) = [part for part in container["command"] if part.startswith("--initial-cluster=")]
    (own,) = [part for part in container["command"] if part.startswith("--initial-advertise-peer-urls=")]
    names = dict(peer.split("=") for peer in peers.removeprefix("--initial-cluster=").split(","))
    assert len(names) == chart.named("etcd-bundled", "StatefulSet", "kvasir-etcd")["spec"]["replicas"]
    for name, url in names.items():
        assert own == f"--initial-advertise-peer-urls={url}".replace(f"//{name}.", "//$(POD_NAME)."), name
    endpoints = {
        argument
        for arguments in chart.commands("etcd-bundled").values()
        for argument in arguments
        if argument.startswith("--etcd=")
    }
    clients = ",".join(url.replace(":2380", ":2379") for url in names.values())
    assert endpoints == {f"--etcd={clients}"}
