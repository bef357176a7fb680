"""Waiting for what is to come: asked again and again, until a deadline that only a failure meets."""

import time

import pytest

WAIT_MAX_S = 60
POLL_S = 0.03


def until(find, what, wait_max_s=WAIT_MAX_S):
    """The first result of `find` that is true."""
    deadline = time.monotonic() + wait_max_s
    while True:
        found = find()
        if found:
            return found
        if time.monotonic() > deadline:
            # A function is asked once more, for what there is instead.
            pytest.fail(f"still not so: {what() if callable(what) else what}")
        time.sleep(POLL_S)
