"""A browser for the dashboard's tests, and pages in it that are watched for what a page should not say, ask or run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from dashboard_fake import BEGAN, Fake, serving
from dashboard_steps import open_dashboard

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog, Page, Request


class Visit(NamedTuple):
    """A page that is open, and what it has said that a page should not say."""

    page: Page
    trouble: list[str]

    def forgive_lost_connections(self) -> None:
        """Take those complaints back that a browser makes by itself of a server that does not answer, or refuses."""
        self.trouble[:] = [each for each in self.trouble if "Failed to load resource" not in each]


#: Opens the page over a fake; more arguments are the browser context's.
Visits = Callable[..., Visit]


def watched(page: Page, own: str) -> Visit:
    """Note whatever a page says, runs or asks of others than `own`, the address it is from."""
    seen = Visit(page, [])

    def dialog(opened: Dialog) -> None:
        seen.trouble.append(f"dialog: {opened.message}")
        opened.dismiss()

    def request(asked: Request) -> None:
        if not asked.url.startswith((own, "data:")):
            seen.trouble.append(f"asks: {asked.url}")

    page.on("console", lambda message: seen.trouble.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.trouble.append(f"error: {error}"))
    page.on("dialog", dialog)
    page.on("request", request)
    page.add_init_script(
        "addEventListener('securitypolicyviolation', (e) => console.error('violates', e.violatedDirective))"
    )
    return seen


@contextlib.contextmanager
def visiting(browser: Browser) -> Iterator[Visits]:
    """Give a way to open pages; in the end none may have run, said or asked anything that it should not."""
    seen: list[Visit] = []
    with contextlib.ExitStack() as stack:

        def open_page(fake: Fake, *, clock: bool = False, **context: Any) -> Visit:
            url = stack.enter_context(serving(fake))
            opened = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **context})
            stack.callback(opened.close)
            opened.set_default_timeout(20_000)
            page = opened.new_page()
            seen.append(watched(page, url.split("#")[0]))
            if clock:
                # It stands until the test lets it run.
                page.clock.install(time=BEGAN)
                page.clock.pause_at(BEGAN + 3600)
            open_dashboard(page, url)
            return seen[-1]

        yield open_page
        for page, _ in seen:
            assert page.evaluate("typeof window.pwned") == "undefined"
    for _, trouble in seen:
        assert trouble == []
