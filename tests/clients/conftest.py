"""One cluster for all tests, and the clients that ask it."""

import os
import random
import shutil
import sys
import sysconfig
from pathlib import Path

import pytest

HARNESS = Path(__file__).resolve().parents[1] / "harness"
sys.path.insert(0, str(HARNESS))

from cluster import Cluster  # noqa: E402
from door import Door  # noqa: E402
from rpc import Rpc  # noqa: E402


def pytest_addoption(parser):
    parser.addoption("--write-expected", action="store_true", help="write expected.json from the running cluster")


def pytest_report_header():
    return f"KVASIR_TEST_SEED={session_seed()}"


def session_seed():
    """Of all that is random here: say it again to see the same."""
    return int(os.environ.setdefault("KVASIR_TEST_SEED", str(random.randrange(2**32))))


@pytest.fixture(scope="session")
def seed():
    return session_seed()


@pytest.fixture(scope="session")
def cluster():
    cluster = Cluster(os.environ["KVASIR_BIN"], os.environ["KVASIR_MODEL"])
    yield cluster
    assert cluster.stop() == 0, "a cluster that is told to end has not failed"


@pytest.fixture(scope="session")
def door(cluster):
    door = Door(cluster.http)
    yield door
    door.close()


@pytest.fixture(scope="session")
def rpc(cluster):
    rpc = Rpc(cluster.grpc)
    yield rpc
    rpc.close()


@pytest.fixture(scope="session")
def grpcurl():
    """The path of the program: in the environment that runs the tests, or in the PATH."""
    places = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", "")])
    path = shutil.which("grpcurl", path=places)
    assert path, "grpcurl is not installed"
    return path
