"""What the tests of a running binary need. The others need none of it."""

import os

import pytest


@pytest.fixture(scope="session")
def binary():
    """The path of `kvasir`."""
    path = os.environ.get("KVASIR_BIN")
    assert path, "KVASIR_BIN does not say where the binary is"
    return os.path.abspath(path)


@pytest.fixture(scope="session")
def model():
    """The path of a GGUF file."""
    path = os.environ.get("KVASIR_MODEL")
    assert path, "KVASIR_MODEL does not say where the model is"
    return os.path.abspath(path)
