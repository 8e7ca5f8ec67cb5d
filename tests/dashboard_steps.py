"""What somebody does on the dashboard, as functions that take a page, be it over a fake server or over a real one.

Each waits for what it causes. None looks at the document right after a click, and none evaluates a string in the page,
which the page's policy forbids to `wait_for_function` as well.
"""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

with contextlib.suppress(ImportError):  # Then the fixture `browser` has skipped all that would use it.
    from playwright.sync_api import expect

    expect.set_options(timeout=20_000)

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page


def open_dashboard(page: Page, url: str) -> None:
    """Open the address that `serve` prints, and wait until the page is live."""
    page.goto(url)
    wait_live(page)


def wait_live(page: Page) -> None:
    expect(page.locator("#link")).to_have_text("live")
    expect(page.locator("body[data-ready]")).to_have_count(1)


def row(page: Page, node: str) -> Locator:
    """Return the row of a node in the table."""
    return page.locator("#nodes tr").filter(has=page.get_by_role("button", name=f"More about {node}", exact=True))


def snapshot_from(page: Page, node: str, *, by_keyboard: bool = False) -> int:
    """Press "Snapshot from here" in a node's row, wait until it is complete and verified, and return its number."""
    before = re.match(r"Snapshot (\d+) from", page.inner_text("#told") if page.is_visible("#told") else "")
    other = rf"(?!{before[1]} )" if before else ""
    button = page.get_by_role("button", name=f"Snapshot from here: {node}", exact=True)
    if by_keyboard:
        tab_to(page, button)
        page.keyboard.press("Enter")
    else:
        button.click()
    expect(page.locator("#told")).to_have_text(
        re.compile(rf"^Snapshot {other}\d+ from {re.escape(node)} completed in .*, verified$")
    )
    said = re.match(r"Snapshot (\d+)", page.inner_text("#told"))
    assert said is not None
    listed = entry(page, int(said[1]))
    expect(listed).to_contain_text(f"from {node}")
    expect(listed).to_contain_text("verified")
    return int(said[1])


def entry(page: Page, number: int) -> Locator:
    """Return a snapshot's entry in the list."""
    link = page.get_by_role("link", name=f"Snapshot {number}", exact=True)
    return page.locator("#snapshots li").filter(has=link)


def open_snapshot(page: Page, number: int) -> None:
    """Open a snapshot of the list, and wait until its content is there."""
    entry(page, number).get_by_role("link").click()
    wait_opened(page, number)


def wait_opened(page: Page, number: int) -> None:
    expect(page.locator("#cut-title")).to_have_text(f"Snapshot {number}")
    expect(page.locator("#cut-mark")).to_contain_text("verified")
    expect(page.locator("#cut-states li").first).to_be_visible()


def compare(page: Page, other: int) -> None:
    """Compare the opened snapshot with another one, and wait for the answer."""
    page.locator("#cut-other").select_option(str(other))
    page.get_by_role("button", name="Compare", exact=True).click()
    expect(page.locator("#cut-difference h3")).to_contain_text(f"snapshot {other}")


def back(page: Page) -> None:
    page.get_by_role("button", name="Back to the run").click()
    expect(page.locator("#live")).to_be_visible()


def open_node(page: Page, node: str) -> None:
    """Open what is told of one node."""
    row(page, node).get_by_role("button", name="More about").click()
    expect(page.locator("#panel-title")).to_have_text(node)
    expect(page.locator("#panel")).to_be_visible()


def answer(page: Page, yes: bool) -> None:
    """Answer the question that the page asks before it does what cannot be undone."""
    expect(page.locator("#ask")).to_be_visible()
    page.locator("#ask-yes" if yes else "#ask-no").click()
    expect(page.locator("#ask")).to_be_hidden()


def tab_to(page: Page, target: Locator, presses: int = 200) -> None:
    """Press Tab until the target has the focus, and it is seen there."""
    script = """(element) => {
        if (document.activeElement !== element) return false;
        const style = getComputedStyle(element.querySelector(".body") ?? element);
        return style.outlineStyle !== "none" || parseFloat(style.strokeWidth) >= 4;
    }"""
    for _ in range(presses):
        page.keyboard.press("Tab")
        if target.count() and target.evaluate(script):
            return
    raise AssertionError(f"no Tab leads to {target}")


def overflow(page: Page) -> int:
    """Return by how much the page is wider than its window; not more than nothing if all is well."""
    script = """() => {
        const root = document.documentElement;
        return Math.max(root.scrollWidth - root.clientWidth, document.body.scrollWidth - root.clientWidth);
    }"""
    return int(page.evaluate(script))


def model(page: Page, path: str) -> Any:
    """Return what the page knows: for waiting until something has arrived that is not drawn yet."""
    script = "async (path) => path.split('.').reduce((at, name) => at?.[name], (await import('/page/model.js')).model)"
    return page.evaluate(script, path)
