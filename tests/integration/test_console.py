"""The console as a person uses it: a real browser, a real provider, real Kafka."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, expect

from foldtune.events import FineTuneStatus, Progress, State, StateTime, now
from foldtune.kafka import Publisher
from foldtune.settings import Settings
from foldtune.topics import Topic
from infra.local.ports import free_port
from tests.browser import PATIENCE, running_browser, sign_in, watched
from tests.running_api import provider_of_console, running_api
from tests.support import Reader


@pytest.fixture
def console(variables: dict[str, str], settings: Settings, tmp_path: Path) -> Iterator[str]:
    """Its address, as a client of a provider."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with provider_of_console(tmp_path, address) as known:
        variables |= known
        with running_api(variables, tmp_path, "--console", port=port):
            yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as found:
        yield found


def status(state: State, **fields: Any) -> FineTuneStatus:
    begun = now() - timedelta(minutes=2)
    states = (StateTime(state="accepted", at=begun), StateTime(state=state.value, at=now()))
    return FineTuneStatus(request_id="r-1", model="support", state=state, at=now(), states=states, **fields)


def progress(step: int) -> Progress:
    return Progress(step=step, steps=100, loss=1.0, examples_per_second=10, eta_seconds=100 - step)


def test_a_job_is_followed_by_one_and_cancelled_by_another(
    console: str, browser: Browser, settings: Settings, publisher: Publisher
) -> None:
    key = {"key": "support"}
    publisher.publish(Topic.FINE_TUNE_STATUS, status(State.RUNNING, progress=progress(10)), **key)
    with browser.new_context(locale="en-GB", timezone_id="Europe/Berlin") as context:
        page = context.new_page()
        page.goto(f"{console}/console/jobs")
        sign_in(page, "viewer")
        problems = watched(page)
        assert page.url == f"{console}/console/jobs"
        page.get_by_role("link", name="r-1").click()
        bar = page.get_by_role("progressbar")
        expect(bar).to_have_attribute("value", "10", timeout=PATIENCE)
        expect(page.get_by_role("button", name="Cancel this job")).to_have_count(0)
        cancel = f"{page.url}/cancel"
        assert context.request.post(cancel, headers={"Origin": console}).status == 403
        page.locator("#progress .scroll").focus()
        publisher.publish(Topic.FINE_TUNE_STATUS, status(State.RUNNING, progress=progress(60)), **key)
        expect(bar).to_have_attribute("value", "60", timeout=PATIENCE)
        # Whoever reads by the keyboard stays where they are.
        expect(page.locator("#progress .scroll")).to_be_focused()
        cancel_as_another(browser, page.url, console, settings)
        publisher.publish(Topic.FINE_TUNE_STATUS, status(State.CANCELLED), **key)
        expect(page.locator(".lead")).to_contain_text("cancelled", timeout=PATIENCE)
        page.get_by_role("button", name="Sign out").click()
        page.goto(f"{console}/console/jobs")
        expect(page).to_have_url(re.compile("/console/sign-in"))
        assert problems == []


def cancel_as_another(browser: Browser, address: str, console: str, settings: Settings) -> None:
    """Cancel the job."""
    with browser.new_context(locale="en-GB") as context:
        page = context.new_page()
        page.goto(address)
        sign_in(page, "requester+operator+privacy")
        assert page.url == address
        page.get_by_role("button", name="Cancel this job").click()
        with Reader(settings, Topic.FINE_TUNE_REQUESTS) as reader:
            (record,) = reader.until(lambda records: len(records) == 1)
    assert b"fine_tune_cancelled" in record.value
