"""The alerts of Prometheus: each can fire, has its line in the runbook, and asks for metrics that there are."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import REGISTRY, CollectorRegistry

# These register the metrics.
import api.http
import api.view.system  # noqa: F401
import notifications.metrics
import streams.metrics  # noqa: F401
from streams.worker.owned_partitions import OwnedPartitions

ROOT = Path(__file__).parents[3]
PROMETHEUS = ROOT / "infra" / "prometheus"
ALERTS: list[dict[str, Any]] = [
    rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
]
NAMES = [alert["alert"] for alert in ALERTS]
PROMTOOL = shutil.which("promtool")
TESTS: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts.test.yml").read_text())["tests"]


def samples() -> set[tuple[str, frozenset[str]]]:
    """What processes that have seen nothing export: names of samples, each with its labels."""
    notifications.metrics.begin("on-call")
    owned = CollectorRegistry()
    owned.register(OwnedPartitions(lambda: [], lambda _: None, dict, lambda: 0.0))
    return {
        (sample.name, frozenset(sample.labels))
        for registry in (REGISTRY, owned)
        for family in registry.collect()
        for sample in family.samples
    } | {(family.name, frozenset()) for family in owned.collect()}


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_asks_for_metrics_that_are_there_before_anything_happens(alert: dict[str, Any]) -> None:
    # A counter that appears with its first event does not increase by it.
    names = set(re.findall(r"foldtune_\w+", alert["expr"]))
    assert names
    assert names <= {name for name, _ in samples()}


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_the_pages_name_metrics_as_they_are_exported(page: str) -> None:
    names = set(re.findall(r"`(foldtune_\w+)", (ROOT / page).read_text()))
    assert names
    # One by route or webhook has no samples before the first.
    families = {family.name + ("_total" if family.type == "counter" else "") for family in REGISTRY.collect()}
    assert names <= {name for name, _ in samples()} | families


@pytest.mark.parametrize("alert", ALERTS, ids=NAMES)
def test_an_alert_has_its_heading_in_the_runbook(alert: dict[str, Any]) -> None:
    page, anchor = alert["annotations"]["runbook_url"].split("#")
    headings = re.findall(r"^### `(\w+)`$", (ROOT / page).read_text(), re.MULTILINE)
    assert anchor == alert["alert"].lower()
    assert alert["alert"] in headings


def test_every_alert_is_fired_and_only_where_it_should() -> None:
    quiet, *firing = TESTS
    assert quiet["name"] == "two workers at rest"
    fired = {
        name
        for test in firing
        for expectation in test["promql_expr_test"]
        for sample in expectation["exp_samples"]
        for name in re.findall(r'alertname="(\w+)"', sample["labels"])
    }
    assert fired == set(NAMES)


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")
@pytest.mark.parametrize(("command", "file"), [("check", "alerts.yml"), ("test", "alerts.test.yml")])
def test_promtool_accepts_the_rules_and_their_tests(command: str, file: str) -> None:
    result = subprocess.run(
        [str(PROMTOOL), command, "rules", PROMETHEUS / file], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
