"""The metric filters of monitoring.yml, held against the lines that the functions really log."""

import json
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest
from cfnlint.decode.cfn_yaml import load
from structlog.testing import capture_logs

from infra.aws.handlers import batch_state, launch
from tests.batch_service import BatchService
from tests.lambda_payloads import Context, Record, kafka_payload
from tests.unit.launchers.conftest import make_job

from .conftest import Published

AWS = Path(__file__).parents[4] / "infra" / "aws"
FILTERS: dict[str, dict[str, Any]] = {
    name: resource["Properties"]
    for name, resource in load(str(AWS / "monitoring.yml"))["Resources"].items()
    if resource["Type"] == "AWS::Logs::MetricFilter"
}
CONDITION = re.compile(r'(\$[.\w\[\]]+) = "([^"]*)"')
Lines = dict[str, list[dict[str, Any]]]


def select(selector: str, line: Any) -> Any:
    """The value at ``$.name[index]…``; ``None`` where there is none."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", selector):
        try:
            line = line[int(index) if index else name]
        except (KeyError, IndexError):
            return None
    return line


def matches(pattern: str, line: dict[str, Any]) -> bool:
    """Whether CloudWatch counts a JSON line; of its syntax, as much as the filters use."""
    conditions = CONDITION.findall(pattern)
    assert "{ " + " && ".join(f'{selector} = "{value}"' for selector, value in conditions) + " }" == pattern
    return all(fnmatchcase(str(select(selector, line)), value) for selector, value in conditions)


def logged(entries: Iterable[Any]) -> list[dict[str, Any]]:
    """Captured lines as CloudWatch sees them, at the least verbose level that a deployment may choose."""
    levels = load(str(AWS / "parameters.yml"))["Parameters"]["LogLevel"]["AllowedValues"]
    assert levels == ["DEBUG", "INFO"]
    return [json.loads(json.dumps(entry)) for entry in entries if entry["log_level"] != "debug"]


@pytest.fixture
def lines(batch: BatchService, published: Published, context: Context) -> Lines:
    """By log group: one job launched and failed, one refused for its cost, one record without a job."""
    job, too_expensive = make_job("r-1"), make_job("r-9", max_seconds=10_000_000)
    records = [
        Record("x-training-jobs", 0, 1, b"r-1", job.encode()),
        Record("x-training-jobs", 0, 9, b"r-9", too_expensive.encode()),
        Record("x-training-jobs", 0, 10, None, b"{}"),
    ]
    with capture_logs() as of_launch:
        launch(kafka_payload(records), context)
    [job_id] = batch.jobs
    batch.end(job_id, 1)
    with capture_logs() as of_batch_state:
        # The end is delivered twice, and counted once.
        for _ in range(2):
            batch_state(batch.events[-1], context)
    return {"LaunchLogGroup": logged(of_launch), "BatchStateLogGroup": logged(of_batch_state)}


def counted(name: str, lines: Lines) -> list[dict[str, Any]]:
    """The lines that a filter counts."""
    properties = FILTERS[name]
    return [line for line in lines[properties["LogGroupName"]["Ref"]] if matches(properties["FilterPattern"], line)]


# A line that is renamed on one side alone, in the code or in the filter, is no longer counted.
@pytest.mark.parametrize("name", FILTERS)
def test_every_filter_counts_its_line_once(name: str, lines: Lines) -> None:
    [line] = counted(name, lines)
    for transformation in FILTERS[name]["MetricTransformations"]:
        value = transformation["MetricValue"]
        assert float(select(value, line) if value.startswith("$") else value) >= 0


def test_spending_is_reserved_at_a_launch_and_corrected_at_the_end(lines: Lines) -> None:
    [launched], [ended] = counted("SpendOfLaunches", lines), counted("SpendOfEnds", lines)
    assert {*launched} >= {"model", "month", "dollars", "job_dollars"}
    assert launched["dollars"] > ended["dollars"] == 0.0


def test_all_alarms_that_count_lines_have_a_filter() -> None:
    assert set(FILTERS) == {
        "FailedJobsCount",
        "FailedLaunchesCount",
        "DeadLettersCount",
        "SpendOfLaunches",
        "SpendOfEnds",
        "RefusedLaunchesCount",
    }
