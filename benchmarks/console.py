"""The console with 500 folders, 2,000 jobs and 200 versions: the time of each page, first paint, memory.

The last line of output is one JSON object. A page's time is from its call to its last byte, one call at a time; first
paint is that of a headless Chromium without a cache.
"""

import http.client
import json
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import typer
from playwright.sync_api import Page

from benchmarks.api import FOLDERS, READY_SECONDS, VERSIONS, fill, is_ready, rss_mebibytes, running, status_of
from foldtune.settings import Settings
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.stack import LocalServers
from tests.browser import running_browser

JOBS = 2_000
PAGES = {
    "models": "/console/",
    "model": "/console/models/model-3",
    "version": "/console/models/model-3/versions/000003",
    "compare": "/console/models/model-3/compare?version=000003&version=000053",
    "fine-tune": "/console/fine-tune?model=model-3",
    "jobs": "/console/jobs",
    "job": "/console/jobs/model-11/r-711",
    "folders": "/console/folders",
    "folder": "/console/folders/folder-77",
    "policies": "/console/policies",
    "policy": "/console/policies/model-3",
    "dead letters": "/console/dead-letters",
    "privacy": "/console/privacy",
    "audit": "/console/audit",
}
_PAINTS = "performance.getEntriesByName('first-contentful-paint').map((entry) => entry.startTime)"


def page_times(port: int, calls: int) -> dict[str, float]:
    """The 99th percentile by page, in milliseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times: dict[str, list[float]] = {page: [] for page in PAGES}
    for page in islice(cycle(PAGES), calls * len(PAGES)):
        started = time.monotonic()
        status = status_of(connection, PAGES[page])
        assert status == 200, (page, status)
        times[page].append(time.monotonic() - started)
    connection.close()
    return {page: round(1000 * quantiles(took, n=100)[98], 1) for page, took in times.items()}


def first_paints(port: int, loads: int) -> dict[str, float]:
    """The median by page, in milliseconds."""
    painted: dict[str, list[float]] = {page: [] for page in PAGES}
    with running_browser() as browser:
        for page in islice(cycle(PAGES), loads * len(PAGES)):
            with browser.new_context(locale="en-GB") as context:
                tab = context.new_page()
                tab.goto(f"http://127.0.0.1:{port}{PAGES[page]}")
                painted[page].append(_first_paint(tab))
    return {page: round(median(took), 1) for page, took in painted.items()}


def _first_paint(tab: Page) -> float:
    """In milliseconds; it is told a moment after the page was loaded."""
    for _ in range(100):
        if found := tab.evaluate(_PAINTS):
            return float(found[0])
        tab.wait_for_timeout(20)
    raise RuntimeError(f"{tab.url} is not painted")


def load(port: int, calls: int) -> None:
    """Load pages one after the other."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for page in islice(cycle(PAGES.values()), calls):
        status_of(connection, page)
    connection.close()


def main(
    calls: Annotated[int, typer.Option(min=100, max=10_000, help="Of each page, for its time.")] = 200,
    loads: Annotated[int, typer.Option(min=100, max=1_000_000, help="Of pages, for the growth of memory.")] = 10_000,
) -> None:
    """Run all, and print one JSON object as the last line."""
    with tempfile.TemporaryDirectory() as folder, LocalServers(LocalOptions(data_dir=Path(folder))) as servers:
        settings = Settings.model_validate({"kafka": {"bootstrap_servers": servers.bootstrap_servers}})
        create_topics(settings.kafka, tuple(Topic))
        fill(settings, JOBS)
        environment = servers.environment | {"FOLDTUNE_API__REQUESTS_PER_MINUTE": "1000000"}
        port = free_port()
        with running(environment, port, Path(folder) / "api.log", "--console") as (pid, _):
            deadline = time.monotonic() + READY_SECONDS
            while not is_ready(port, PAGES.values()) and time.monotonic() < deadline:
                time.sleep(0.5)
            p99 = page_times(port, calls)
            painted = first_paints(port, 5)
            before = rss_mebibytes(pid)
            load(port, loads)
            after = rss_mebibytes(pid)
    result = {
        "jobs": JOBS,
        "versions": VERSIONS,
        "folders": FOLDERS,
        "page_p99_ms": max(p99.values()),
        "page_p99_ms_by_page": p99,
        "first_paint_ms": max(painted.values()),
        "first_paint_ms_by_page": painted,
        "rss_mib": round(after, 1),
        "rss_growth": round(after / before, 3),
        "loads": loads,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    typer.run(main)
