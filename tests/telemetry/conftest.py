"""What all tests share: where the programs are, and a folder for what processes write."""

import shutil

import pytest

from processes import end_all


def pytest_addoption(parser):
    parser.addoption("--write-metrics", action="store_true", help="write metrics.json from the running cluster")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    yield tmp_path_factory.mktemp("processes")
    end_all()


@pytest.fixture(scope="session")
def promtool():
    return program("promtool")


@pytest.fixture(scope="session")
def prometheus():
    return program("prometheus")


def program(name):
    path = shutil.which(name)
    assert path, f"{name} is not installed (Debian: the package prometheus, whose service need not run)"
    return path
