"""From the form to an approved version, as people do it in a browser, with a server that ends in the middle."""

import json
import re
from pathlib import Path

import httpx
from playwright.sync_api import Browser, Page, expect

from infra.local.ports import free_port
from tests.browser import PATIENCE, running_browser, sign_in, watched
from tests.console_pages import check_accessibility, pages_of
from tests.running_api import provider_of_console, running_api, start_api

# A first version of a model of its own, which is compared with the base model.
MODEL = "library-search-by-hand"
# A training, and what else the machine does meanwhile.
TRAINING = 300_000


def check_journey(variables: dict[str, str], folder: Path, demo: str) -> None:
    """Against the servers, worker and launcher of a demo, whose own console is looked at while a model is trained."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with provider_of_console(folder, address) as known, running_browser() as browser:
        variables = variables | known | {"FOLDTUNE_APPROVAL__MODELS": json.dumps([MODEL])}
        child = start_api(variables, folder, "--console", port=port)
        try:
            with browser.new_context(locale="en-GB", timezone_id="Europe/Berlin") as context:
                page = context.new_page()
                page.goto(f"{address}/console/fine-tune")
                check_accessibility(browser, address, {"sign in": "/console/sign-in"})
                sign_in(page, "requester+approver+privacy")
                be_corrected(page)
                lose_the_server(page)
                problems = watched(page)
                start_job(page)
                assert problems == [], problems
                child.kill()
                expect(page.get_by_text("No connection. What you see is as of")).to_be_visible(timeout=PATIENCE)
                with httpx.Client(base_url=demo, timeout=30) as api:
                    check_accessibility(browser, demo, pages_of(api))
                with running_api(variables, folder, "--console", port=port):
                    expect(page.locator("#lost")).to_be_hidden(timeout=PATIENCE)
                    approve_what_it_has_made(page)
                    check_as_viewer(browser, page.url)
        finally:
            child.kill()


def be_corrected(page: Page) -> None:
    """What cannot be asked for stays in the form, with the reason beside it."""
    model = page.get_by_label("Model", exact=True)
    model.fill("Not A Name")
    page.get_by_role("button", name="Fine-tune").click()
    expect(model).to_have_attribute("aria-invalid", "true", timeout=PATIENCE)
    expect(page.locator("#error-model")).to_contain_text("1 to 64 lower-case letters")
    expect(model).to_have_value("Not A Name")


def lose_the_server(page: Page) -> None:
    """What is shown may be old, and says so until there is an answer again."""
    page.route("**/fine-tune/preview*", lambda route: route.abort())
    page.get_by_label("Epochs").fill("2")
    expect(page.locator("#lost")).to_be_visible(timeout=PATIENCE)
    page.unroute("**/fine-tune/preview*")
    page.get_by_label("Epochs").fill("1")
    expect(page.locator("#lost")).to_be_hidden(timeout=PATIENCE)


def start_job(page: Page) -> None:
    """Fill the form in, look at what it would do, and ask for it."""
    page.get_by_label("Model", exact=True).fill(MODEL)
    be_warned(page)
    page.get_by_label("Batch size").fill("16")
    page.get_by_label("Trainable layers").fill("2")
    page.get_by_label("Epochs").fill("1")
    page.get_by_label("Epochs").blur()
    button = page.get_by_role("button", name=re.compile(rf"Fine-tune {MODEL} on [\d,]+ examples"))
    expect(button).to_be_visible(timeout=PATIENCE)
    look_at_negatives(page)
    button.dblclick()
    expect(page).to_have_url(re.compile(f"/console/jobs/{MODEL}/"), timeout=PATIENCE)


def be_warned(page: Page) -> None:
    """A knob that fights the data says so beside itself while it is typed, and is reset."""
    batch = page.get_by_label("Batch size")
    batch.fill("4096")
    expect(page.locator("[id='hint-training.batch_size']")).to_contain_text("every step has all", timeout=PATIENCE)
    expect(page).to_have_url(re.compile("batch_size=4096"))
    page.get_by_role("button", name="reset Batch size").click()
    expect(batch).to_have_value("32")
    expect(page.locator("[id='hint-training.batch_size']")).to_be_empty(timeout=PATIENCE)


def look_at_negatives(page: Page) -> None:
    """Each passage has its reason, which follows the threshold at once."""
    taken = page.locator("#preview .passages .taken")
    expect(taken.first).to_be_visible(timeout=PATIENCE)
    slider = page.locator("#threshold")
    chosen = slider.input_value()
    slider.evaluate("(input) => { input.value = 0; input.dispatchEvent(new Event('input')); }")
    expect(taken).to_have_count(0)
    slider.evaluate(f"(input) => {{ input.value = {chosen}; input.dispatchEvent(new Event('input')); }}")
    expect(taken.first).to_be_visible()
    for key in ("ArrowRight", "ArrowLeft"):  # Each brings another slider, which the keyboard still moves.
        slider.evaluate("(input) => { input.dataset.old = ''; }")
        slider.press(key)
        expect(page.locator("#threshold:not([data-old])")).to_be_focused(timeout=PATIENCE)


def approve_what_it_has_made(page: Page) -> None:
    """Watch the training end, read its verdict and its questions, and approve the version."""
    expect(page.locator("p.verdict")).to_contain_text("Better: nDCG@10", timeout=TRAINING)
    expect(page.locator("p.verdict")).to_contain_text("waits for an approval")
    page.locator("summary", has_text="Those that got better").click()
    expect(page.get_by_text("Rank of the first right passage").first).to_be_visible(timeout=PATIENCE)
    page.get_by_label("Comment").fill("read its questions")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text(re.compile("approved, .* read its questions$"))).to_be_visible(timeout=PATIENCE)


def check_as_viewer(browser: Browser, job: str) -> None:
    """One who may only look sees the verdict, and nothing to press."""
    with browser.new_context(locale="en-GB") as context:
        page = context.new_page()
        page.goto(job)
        sign_in(page, "viewer")
        expect(page.locator("p.verdict")).to_contain_text("Better: nDCG@10", timeout=PATIENCE)
        assert set(page.get_by_role("button").all_inner_texts()) == {"Copy", "Sign out"}
        expect(page.get_by_role("link", name="Fine-tune")).to_have_count(0)
        # Asked for once, however often the button was clicked.
        page.get_by_role("link", name="Jobs").click()
        expect(page.locator(f"tbody a[href^='/console/jobs/{MODEL}/']")).to_have_count(1)
