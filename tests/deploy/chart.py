"""The chart, rendered: its objects, and the command lines in them."""

import functools

import yaml

from tools import CHART, HERE, helm

RELEASE = "kvasir"
NAMESPACE = "llm"
SETS = sorted(path.stem for path in (HERE / "values").glob("*.yaml"))
# As the downward API would say it.
POD_IP = "192.0.2.7"


def rendered(*flags, values=None):
    """The text of all objects. `values` names one of the sets."""
    files = ["--values", HERE / "values" / f"{values}.yaml"] if values else []
    return helm("template", RELEASE, CHART, "--namespace", NAMESPACE, *files, *flags)


@functools.cache
def text(values):
    return rendered(values=values)


def objects(values):
    return [found for found in yaml.safe_load_all(text(values)) if found]


def named(values, kind, name):
    (found,) = [found for found in objects(values) if found["kind"] == kind and found["metadata"]["name"] == name]
    return found


def of_kind(values, *kinds):
    return [found for found in objects(values) if found["kind"] in kinds]


def pod_templates(values):
    """Every template of a pod as `(kind/name, template)`. A pod is its own."""
    for found in objects(values):
        spec, name = found.get("spec", {}), f"{found['kind']}/{found['metadata']['name']}"
        if found["kind"] == "Pod":
            yield name, found
        elif "leaderWorkerTemplate" in spec:
            yield name, spec["leaderWorkerTemplate"]["workerTemplate"]
        elif "template" in spec:
            yield name, spec["template"]


def containers(values):
    """All of them as `(kind/name/container, container)`, those of the beginning first."""
    for name, template in pod_templates(values):
        spec = template["spec"]
        for container in spec.get("initContainers", []) + spec["containers"]:
            yield f"{name}/{container['name']}", container


def commands(values):
    """What Kvasir is started with: arguments by the name of the container, as the first pod of each set gets them."""
    return {
        name: [_expanded(argument, name) for argument in container["args"]]
        for name, container in containers(values)
        if container["image"].split(":")[0].endswith("kvasir")
    }


def _expanded(argument, name):
    pod = name.split("/")[1] + "-0"
    return argument.replace("$(POD_NAME)", pod).replace("$(POD_IP)", POD_IP)
