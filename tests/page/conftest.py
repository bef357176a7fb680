"""One cluster of two groups for most tests, and a browser."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

HARNESS = Path(__file__).resolve().parents[1] / "harness"
sys.path.insert(0, str(HARNESS))

from cluster import Cluster  # noqa: E402
from looks import Look  # noqa: E402
from processes import Kvasir  # noqa: E402

DESK = {"width": 1440, "height": 900}


@pytest.fixture(scope="session")
def kvasir():
    return Kvasir(os.environ["KVASIR_BIN"], os.environ["KVASIR_MODEL"])


@pytest.fixture(scope="session")
def cluster(kvasir):
    process = kvasir.up("--workers", "3", "--groups", "1,2", "--no-rebalance")
    cluster = Cluster(kvasir, process)
    yield cluster
    cluster.close()
    assert process.stop() == 0, "a cluster that is told to end has not failed"


@pytest.fixture(scope="session")
def browser():
    path = os.environ.get("KVASIR_CHROMIUM") or shutil.which("chromium")
    assert path, "chromium is not installed"
    with sync_playwright() as playwright:
        # In a container there is no sandbox to be had; the pages are our own.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def look(browser):
    """Opens pages. They are closed at the end, when nothing may have gone wrong in them but what a test has taken out."""
    opened = []

    def open_page(url, **options):
        context = browser.new_context(**{"viewport": DESK, "reduced_motion": "reduce", **options})
        context.set_default_timeout(30_000)
        opened.append(Look(context, url))
        return opened[-1]

    yield open_page
    wrong = [text for look in opened for text in look.wrong]
    for look in opened:
        look.page.context.close()
    assert wrong == []
