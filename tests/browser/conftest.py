"""A browser for the tests of this folder."""

import os

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
