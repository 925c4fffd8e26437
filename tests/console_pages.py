"""Every page of a console, on a system in which something was trained."""

from typing import Any

import httpx
from playwright.sync_api import Browser, Page, expect

from tests.browser import axe_script


def pages_of(api: httpx.Client) -> dict[str, str]:
    """The pages by name, with what there is: the model with most versions, these, and so on."""

    def items(path: str, **query: str) -> list[dict[str, Any]]:
        return list(api.get(path, params=query).raise_for_status().json()["items"])

    model = max(items("/models"), key=lambda model: int(model["versions"]))["model"]
    promoted = [version for version in items(f"/models/{model}/versions") if version["promoted"]]
    newest, oldest = promoted[0], promoted[-1]
    folder = max(items("/folders"), key=lambda folder: int(folder["examples"]))["folder_id"]
    erasure = items("/audit", action="erasure.ask")[0]["target"]
    letter = items("/dead-letters")[0]["id"]
    compared = f"/console/models/{model}/compare?version={oldest['version']}&version={newest['version']}"
    return {
        "models": "/console/",
        "model": f"/console/models/{model}",
        "version": f"/console/models/{model}/versions/{newest['version']}",
        "reject": f"/console/models/{model}/versions/{newest['version']}/reject",
        **({"compare": compared} if newest is not oldest else {}),
        "fine-tune": f"/console/fine-tune?model={model}&training.epochs=1",
        "jobs": "/console/jobs",
        "job": f"/console/jobs/{model}/{oldest['request_id']}",
        "folders": "/console/folders",
        "folder": f"/console/folders/{folder}",
        "policies": "/console/policies",
        "policy": f"/console/policies/{model}",
        "policy-form": f"/console/policies/{model}/edit",
        "dead-letters": "/console/dead-letters",
        "dead-letter": f"/console/dead-letters/{letter}/value",
        "privacy": "/console/privacy",
        "erasure": f"/console/privacy/{erasure}",
        "audit": "/console/audit",
    }


def check_accessibility(browser: Browser, console: str, pages: dict[str, str]) -> None:
    """No violation that axe-core calls serious, at any width, in light and dark; and nothing wider than the window."""
    for scheme in ("light", "dark"):
        for width in (320, 1440):
            with browser.new_context(
                color_scheme=scheme,
                viewport={"width": width, "height": 900},
                locale="en-GB",
                # axe runs inside the page, whose policy would stop it.
                bypass_csp=True,
            ) as context:
                page = context.new_page()
                for name, address in pages.items():
                    open_page(page, f"{console}{address}")
                    page.evaluate(axe_script())
                    found = page.evaluate("axe.run().then((results) => results.violations)")
                    serious = [item["id"] for item in found if item["impact"] in {"serious", "critical"}]
                    assert serious == [], (scheme, width, name, found)
                    assert page.evaluate("document.documentElement.scrollWidth") <= width, (width, name)


def open_page(page: Page, address: str) -> None:
    """A page with all that comes later, and the questions of a job unfolded."""
    answer = page.goto(address)
    assert answer, address
    assert answer.ok, (address, answer.status)
    page.wait_for_load_state("networkidle")
    # Each chart is drawn, and not only its table there.
    for plot in page.locator("figure.chart > .plot").all():
        expect(plot.locator("canvas")).to_have_count(1)
    for details in page.locator("details[hx-get]").all():
        details.locator("summary").click()
        # Until then a link stands there, for those without JavaScript.
        expect(details.locator(".rows > p:only-child > a")).to_have_count(0)
