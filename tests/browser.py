"""A real Chromium without a display: npm's package unpacks it, with the libraries that it needs."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.node import NODE, ROOT, install_node_packages

# Not the package's own list, which switches security off.
_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
# In milliseconds, of waits for a page.
PATIENCE = 60_000
_UNPACK = "import chromium from '@sparticuz/chromium'; console.log(await chromium.executablePath())"


@contextmanager
def running_browser() -> Iterator[Browser]:
    """A browser with a profile of its own."""
    executable = _executable()
    libraries = f"{executable.parent / 'al2023' / 'lib'}:{executable.parent}"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=_FLAGS, env={**os.environ, "LD_LIBRARY_PATH": libraries}
        )
        try:
            yield browser
        finally:
            browser.close()


@cache
def _executable() -> Path:
    install_node_packages()
    # It unpacks into the folder for temporary files, where it finds it again.
    with FileLock(ROOT / ".venv" / "chromium.lock"):
        found = subprocess.run(
            [NODE, "--input-type=module", "--eval", _UNPACK], cwd=ROOT, check=True, capture_output=True, text=True
        )
    return Path(found.stdout.strip())


def axe_script() -> str:
    """The accessibility checks of axe-core."""
    install_node_packages()
    return (ROOT / "node_modules" / "axe-core" / "axe.min.js").read_text()


def sign_in(page: Page, name: str) -> None:
    """Sign in at the provider, whose pages ask for a name and for consent."""
    page.get_by_role("link", name="Sign in", exact=True).click()
    page.locator("input[name=login]").fill(name)
    page.locator("input[name=password]").fill("any")
    page.get_by_role("button", name="Sign-in").click()
    page.get_by_role("button", name="Continue").click()
    expect(page.get_by_text(f"Signed in as {name}")).to_be_visible(timeout=PATIENCE)


def watched(page: Page) -> list[str]:
    """What the browser will complain of: scripts' errors, and what the content security policy has stopped."""
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    return problems
