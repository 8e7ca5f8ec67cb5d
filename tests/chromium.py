"""A browser for tests of pages.

Without playwright or chromium a test that wants one is skipped, but with MPSNAP_BROWSER=1 their absence is a failure.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

CHROMIUM = os.environ.get("MPSNAP_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
#: A browser of its own, that asks nobody anything.
ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--disable-extensions", "--no-first-run", "--no-default-browser-check"),
)


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Start a browser, and end it."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _absent("playwright is not installed: pip install 'mpsnap[browser]'")
    if CHROMIUM is None:
        _absent("there is no chromium on the PATH, nor in MPSNAP_CHROMIUM")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        yield started
        started.close()


def _absent(what: str) -> None:
    if os.environ.get("MPSNAP_BROWSER") == "1":
        pytest.fail(what)
    pytest.skip(what)
