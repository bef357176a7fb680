"""docs/operate.md: its commands are understood, what it quotes is what comes, and what it names is there."""

import os
import re
import shlex

import pytest
import yaml

import chart
from test_alerts import anchors
from tools import CHART, ROOT, found, run

PAGE = ROOT / "docs" / "operate.md"
TEXT = PAGE.read_text()
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())


def blocks():
    return re.findall(r"^```\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def command_lines(program):
    """In blocks of code, without the prompt."""
    lines = [line.removeprefix("$ ") for block in blocks() for line in block.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith(f"{program} ")]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        path, _, anchor = target.partition("#")
        page = (PAGE.parent / path).resolve() if path else PAGE
        assert page.is_file(), target
        assert not anchor or anchor in anchors(page.read_text()), target


def test_files_that_are_named_are_there():
    for path in re.findall(r"(?<![\w/])((?:deploy|docs|tests)/[\w./-]*\w)", TEXT):
        assert (ROOT / path).exists(), path


def test_values_that_are_named_are_there():
    named = re.findall(r"(?:`|--set )([a-z]\w*(?:\.\w+)+)(?==|`| )", TEXT)
    named = [name for name in named if name.split(".")[0] in VALUES]
    assert len(named) > 40
    for name in named:
        place = VALUES
        for part in name.split("."):
            assert part in place, name
            place = place[part]


def test_helm_understands_its_commands():
    lines = command_lines("helm")
    for line in lines:
        settings = [part for name, value in zip(line, line[1:]) if name == "--set" for part in (name, value)]
        if settings:
            chart.rendered(*settings)
        for path in line:
            assert not path.startswith("deploy/") or (ROOT / path).exists()
    assert len(lines) >= 5


@pytest.fixture(scope="module")
def helps(binary):
    """What each role says of itself, by its name."""
    return {line[1]: run(binary, line[1], "--help") for line in command_lines("kvasir")}


def test_kvasir_knows_every_flag(helps):
    lines = command_lines("kvasir")
    assert len(lines) > 12
    for line in lines:
        known = set(re.findall(r"--[a-z][-a-z0-9]*", helps[line[1]]))
        assert {part.split("=")[0] for part in line if part.startswith("--")} <= known, " ".join(line)


def test_flags_in_the_text_are_flags_of_some_role(binary):
    known = set()
    for role in ("coordinator", "worker", "up", "gateway", "status", "drain", "plan", "certs", "key", "reshard"):
        known |= set(re.findall(r"--[a-z][-a-z0-9]*", run(binary, role, "--help")))
    prose = re.sub(r"^```\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)
    spans = [span for span in re.findall(r"`([^`]+)`", prose) if not re.match(r"(kubectl|helm|docker)\b", span)]
    for span in spans:
        for flag in re.findall(r"(?<![\w-])--[a-z][-a-z0-9]*", span):
            assert flag in known, span


def test_what_is_quoted_of_a_plan_is_what_comes(binary, model):
    quoted = [block.split("\n", 1) for block in blocks() if block.startswith("$ kvasir plan")]
    assert len(quoted) == 2
    for command, output in quoted:
        line = shlex.split(command.removeprefix("$ ").replace("$MODEL", model))
        assert _either(binary, *line[1:]).strip() == output.strip()


def _either(*command):
    """Whatever it says, also when it refuses."""
    return run("/bin/sh", "-c", '"$0" "$@" 2>&1 || true', *command, env=os.environ | {"NO_COLOR": "1"})


def test_secrets_that_are_made_by_hand_have_the_files_that_pods_read(binary, tmp_path):
    """The commands of the page, as they stand there, against the pods of the set `secrets`."""
    secrets = _make_secrets(binary, tmp_path)
    assert secrets.keys() == {"kvasir-coordinator", "kvasir-workers", "kvasir-keys"}
    flags = [flag for line in command_lines("helm") for flag in line if flag.startswith(("tls.", "apiKeys."))]
    text = chart.rendered(*(part for flag in flags for part in ("--set", flag)))
    sets = [found for found in yaml.safe_load_all(text) if found and found["kind"] == "StatefulSet"]
    read = {name: files for each in sets for name, files in _files_of_secrets(each)}
    assert read.keys() == secrets.keys()
    for name, files in read.items():
        assert files <= secrets[name], f"{name} has {secrets[name]}"


def _make_secrets(binary, folder):
    secrets = {}
    for line in command_lines("kvasir"):
        if line[1] == "certs" or line[1] == "key":
            run(binary, *line[1:], cwd=folder)
    for line in command_lines("kubectl"):
        if "secret" in line:
            flags = ["--dry-run=client", "--output=yaml"]
            secret = yaml.safe_load(
                run(found("kubectl"), *line[1:], *flags, cwd=folder, env=os.environ | {"KUBECONFIG": ""})
            )
            secrets[secret["metadata"]["name"]] = set(secret["data"])
    return secrets


def _files_of_secrets(found):
    """`(secret, keys that the pods of this set read of it)`."""
    spec = found["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    folders = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    for volume in spec["volumes"]:
        if "secret" in volume:
            folder = folders[volume["name"]]
            paths = [part.partition("=")[2] for part in container["args"] if f"={folder}/" in part]
            keys = {path.removeprefix(f"{folder}/") for path in paths}
            pods = [f"{found['metadata']['name']}-{index}" for index in range(found["spec"]["replicas"])]
            yield volume["secret"]["secretName"], {key.replace("$(POD_NAME)", pod) for key in keys for pod in pods}
