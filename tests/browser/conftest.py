"""A browser for the tests of this folder."""

import os
from contextlib import contextmanager

import pytest
from playwright.sync_api import sync_playwright

from tests.conftest import missing

CHROMIUM = "/usr/bin/chromium"


@pytest.fixture(scope="module")
def chromium():
    if not os.path.exists(CHROMIUM):
        missing(f"{CHROMIUM} is not there: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


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
