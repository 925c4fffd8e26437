"""Pictures of every page of the console, on what the demo has done: ``make screenshots``.

Each is taken on a desktop in light and dark, and on a phone; ``docs/console.md`` shows them.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import typer
from PIL import Image
from playwright.sync_api import Browser, Page

from tests.browser import running_browser
from tests.console_pages import check_accessibility, open_page, pages_of
from tests.node import ROOT

IMAGES = ROOT / "docs" / "images"
# Name, width in CSS pixels, and colours.
_VIEWS = (("desktop", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light"))
_HEIGHT, _MAX_HEIGHT = 900, 2_600
# Charts follow a window's size a moment later.
_REDRAWN_MS = 400


@contextmanager
def running_demo(rounds: int) -> Iterator[str]:
    """The console's address of a demo that has trained on its own, so often and once more."""
    command = [sys.executable, "-m", "demo", "--keep", "--loop", str(rounds)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            for line in process.stdout:
                typer.echo(line, nl=False)
                if found := re.search(r"(http://\S+)/console/", line):
                    break
            assert found, "the demo has ended"
            yield found[1]
        finally:
            process.terminate()


def shoot(browser: Browser, console: str, pages: dict[str, str], folder: Path) -> None:
    """A picture of each page in each view."""
    for view, width, scheme in _VIEWS:
        with browser.new_context(
            locale="en-GB",
            timezone_id="Europe/Berlin",
            color_scheme=scheme,  # type: ignore[arg-type]  # one of its names
            viewport={"width": width, "height": _HEIGHT},
        ) as context:
            page = context.new_page()
            for name, address in pages.items():
                open_page(page, f"{console}{address}")
                take(page, folder / f"console-{name}-{view}.png", width)


def take(page: Page, path: Path, width: int) -> None:
    """The page from its top, with few colours."""
    height = min(int(page.evaluate("document.documentElement.scrollHeight")), _MAX_HEIGHT)
    # In a window of that height, for what stays in sight.
    page.set_viewport_size({"width": width, "height": height})
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(_REDRAWN_MS)
    page.screenshot(path=path)
    page.set_viewport_size({"width": width, "height": _HEIGHT})
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(256)
    few.save(path, optimize=True)


def main(
    console: Annotated[str | None, typer.Option(help="Of a demo that runs; default: run one.")] = None,
    folder: Annotated[Path, typer.Option(help="For the pictures.")] = IMAGES,
    rounds: Annotated[int, typer.Option(min=1, max=5)] = 2,
) -> None:
    """Take all pictures."""
    if console is None:
        with running_demo(rounds) as found:
            main(found, folder, rounds)
        return
    folder.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=console, timeout=30) as api, running_browser() as browser:
        pages = pages_of(api)
        shoot(browser, console, pages, folder)
        # There are pages that a shorter demo has not.
        check_accessibility(browser, console, pages)


if __name__ == "__main__":
    typer.run(main)
