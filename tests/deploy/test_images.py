"""The Dockerfiles, which nothing builds here: what they copy, who they run as, and that versions agree."""

import re
import tomllib

import pytest
import yaml

from tools import CHART, DEPLOY, ROOT

FILES = ["Dockerfile", "Dockerfile.cuda"]


@pytest.fixture(params=FILES)
def instructions(request):
    """As `(word, rest)`, with continued lines joined and comments left out."""
    text = (DEPLOY / request.param).read_text()
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in lines.splitlines() if line.strip()]


def test_it_runs_as_a_user_by_number_and_as_the_chart_says(instructions):
    security = yaml.safe_load((CHART / "values.yaml").read_text())["podSecurityContext"]
    users = [rest for word, rest in instructions if word == "USER"]
    assert users == [f"{security['runAsUser']}:{security['runAsGroup']}"]
    assert ("ENTRYPOINT", '["/usr/local/bin/kvasir"]') in instructions


def test_stages_that_are_copied_from_are_there(instructions):
    stages = [rest.split(" AS ")[1] for word, rest in instructions if word == "FROM" and " AS " in rest]
    for word, rest in instructions:
        source = re.match(r"--from=(\S+)", rest)
        if word == "COPY" and source:
            assert source[1] in stages


def test_the_toolchain_is_the_repository_s(instructions):
    channel = tomllib.loads((ROOT / "rust-toolchain.toml").read_text())["toolchain"]["channel"]
    assert any(rest.startswith(f"rust:{channel}-") for word, rest in instructions if word == "FROM")
    text = " ".join(rest for word, rest in instructions if word == "ENV")
    assert f"RUSTUP_TOOLCHAIN={channel}" in text


def test_the_build_for_gpus_is_that_of_xtask():
    text = (DEPLOY / "Dockerfile.cuda").read_text()
    source = (ROOT / "xtask/src/gpu.rs").read_text()
    constants = dict(re.findall(r'const (\w+): &str = "(\w+)"', source))
    assert f"CUDA_COMPUTE_CAP={constants['COMPUTE_CAPABILITY']}" in text
    assert f"CUDARC_CUDA_VERSION={constants['CUDA_VERSION']}" in text
    assert f"--features kvasir/{constants['FEATURES']}" in text
    major, minor = int(constants["CUDA_VERSION"][:2]), int(constants["CUDA_VERSION"][2:4])
    assert len(re.findall(rf"nvidia/cuda:{major}\.{minor // 10}\.\d+-", text)) == 2


def test_versions_agree():
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == version
    for service in yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values():
        if service["image"].startswith("kvasir:"):
            assert service["image"] == f"kvasir:{version}"


def test_both_builds_leave_out_the_same():
    lists = [(DEPLOY / f"{name}.dockerignore").read_text() for name in FILES]
    assert lists[0] == lists[1]
    members = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["members"]
    ignored = [line for line in lists[0].splitlines() if line and not line.startswith("#")]
    assert not set(ignored) & set(members), "cargo reads the manifest of every member"
