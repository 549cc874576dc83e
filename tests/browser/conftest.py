"""A browser for the tests of this folder."""

import os
from contextlib import contextmanager
from copy import deepcopy

import pytest
from playwright.sync_api import sync_playwright

from rayad.datasets.phantom import Dataset
from tests.conftest import missing
from tests.contract import phantom

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def chromium():
    if not os.path.exists(CHROMIUM):
        missing(f"{CHROMIUM} is not there: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def drawn():
    return phantom(Dataset(patients=4))


@pytest.fixture
def server(drawn):
    """Two detectors of one phantom, whose answers a test may change."""
    contract = deepcopy(drawn)
    running = contract.start()
    yield contract
    running.shutdown()
    running.server_close()


@contextmanager
def opened(chromium, address, width=1280, **options):
    """A page at an address; afterwards its console is clean."""
    context = chromium.new_context(viewport={"width": width, "height": 900}, **options)
    page, errors = context.new_page(), []
    page.on(
        "console",
        lambda message: message.type == "error" and errors.append(f"{message.text} {message.location['url']}"),
    )
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(address)
    yield page
    context.close()
    assert errors == []


def overflow(page):
    """By how many pixels a page is wider than its window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
