"""The dashboard in a real browser, over a real cluster of eight processes: what somebody does on it, from end to end.

Skipped where there is no playwright or no chromium, but with MPSNAP_BROWSER=1 their absence is a failure. With
MPSNAP_PICTURE=FILE the page is drawn into that file, as README shows it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cli_harness import COMMAND, ENVIRONMENT, end, leaves_nothing
from conftest import wait_until
from dashboard_browser import watched
from dashboard_steps import (
    answer,
    back,
    compare,
    open_dashboard,
    open_node,
    open_snapshot,
    overflow,
    snapshot_from,
    wait_live,
    wait_opened,
)

with contextlib.suppress(ImportError):
    from playwright.sync_api import expect

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.processes, pytest.mark.browser, pytest.mark.timeout(180)]

TOPOLOGY = "complete:8"


class Served(NamedTuple):
    """Hold a cluster that is served, and the address of its page."""

    process: subprocess.Popen[str]
    address: str


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    # Short: the path of a socket has room for a hundred characters.
    folder = tempfile.mkdtemp(prefix="mpsnap-")
    said = tmp_path / "stderr"
    command = [*COMMAND, "serve", "--topology", TOPOLOGY, "--store", str(tmp_path / "kept"), "--snapshot-every", "0.5"]
    with said.open("w") as errors:
        process = subprocess.Popen(
            [*command, "--keep", "100", "--name", "demo"],
            cwd=tmp_path,
            env={**ENVIRONMENT, "XDG_RUNTIME_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    try:
        found = wait_until(lambda: re.search(r"its page: (http://\S+)", said.read_text()), "an address", 30.0)
        assert found is not None
        wait_until(lambda: "Ctrl-C stops it" in said.read_text(), "a cluster", 30.0)
        yield Served(process, found[1])
    finally:
        end(process)
        process.wait()
        leaves_nothing(process.pid)
        shutil.rmtree(folder)


def test_a_cut_is_taken_looked_into_and_compared_and_a_death_is_survived(browser: Browser, served: Served) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="dark")
    context.set_default_timeout(20_000)
    page = context.new_page()
    seen = watched(page, served.address.split("#")[0])
    open_dashboard(page, served.address)
    assert served.address.split("#")[1] not in page.url, "the secret stays in nobody's history"
    first = snapshot_from(page, "N3")
    second = snapshot_from(page, "N5")
    open_snapshot(page, first)
    expect(page.locator("#cut-states li")).to_have_count(8)
    expect(page.locator("#cut-states")).to_contain_text("tokens")
    compare(page, second)
    page.reload()
    wait_opened(page, first)
    back(page)
    _draw(page)
    open_node(page, "N6")
    page.locator("#panel-kill").click()
    answer(page, yes=True)
    expect(page.locator("#events")).to_contain_text("N6 died")
    expect(page.locator("#events")).to_contain_text("recovered")
    wait_live(page)
    page.reload()
    wait_live(page)
    third = snapshot_from(page, "N6")
    open_snapshot(page, third)
    for width in (1280, 375):
        page.set_viewport_size({"width": width, "height": 800})
        assert overflow(page) <= 0
    back(page)
    page.get_by_role("button", name="Stop…").click()
    answer(page, yes=True)
    assert served.process.wait(30) == 0
    expect(page.locator("#link")).not_to_have_text("live")
    seen.forgive_lost_connections()
    assert seen.trouble == []
    context.close()


def _draw(page: Page) -> None:
    path = os.environ.get("MPSNAP_PICTURE")
    if path:
        # A little of a time line.
        page.wait_for_timeout(15_000)
        page.get_by_role("button", name="Play").click()
        page.wait_for_timeout(1_000)
        page.screenshot(path=path)
