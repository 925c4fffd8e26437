"""A short run of random events, each of which is accounted for."""

from pathlib import Path

from infra.local.stack import LocalServers
from tests.fuzz.run import fuzz


def test_random_events_are_accounted_for_and_end_no_process(local_servers: LocalServers, tmp_path: Path) -> None:
    report = fuzz(local_servers, 3, 150, 60, tmp_path)
    assert report.wrong == []
    assert len(report.records) == 10
    assert all(report.records.values())
    assert sum(report.dead_letters.values()) > 60
    assert report.answers["fine-tune-status rejected"] > 0
    assert report.http["202"] > 0
