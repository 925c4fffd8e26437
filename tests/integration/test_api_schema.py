"""schemathesis calls the running API by its own description: no answer is a 5xx, and each is as described."""

import subprocess
import sys
from pathlib import Path

from foldtune.events import (
    FineTuneStatus,
    FolderDay,
    FolderStats,
    ModelReviewed,
    PolicyDecided,
    RetrainingPolicy,
    State,
    now,
)
from foldtune.kafka import Publisher
from foldtune.policy import Calendar, Rule
from foldtune.settings import Settings
from foldtune.topics import Topic
from tests.integration.conftest import StartWorker
from tests.running_api import previewed, running_api
from tests.support import model_ready

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "unsupported_method",
)
# Each would start a process that reads the topics; its body is that of another.
EXCLUDED = "/erasures/preview"


def test_the_api_is_as_it_describes_itself(
    variables: dict[str, str], settings: Settings, publisher: Publisher, start_worker: StartWorker, tmp_path: Path
) -> None:
    # It answers previews.
    start_worker()
    for number, state in enumerate((State.COMPLETED, State.FAILED)):
        status = FineTuneStatus(request_id=f"{number}", model="0", state=state, at=now())
        publisher.send(Topic.FINE_TUNE_STATUS, status, key=f"0/{number}", partition_by="0")
    publisher.send(Topic.MODEL_READY, model_ready(model="0", version="0"), key="0")
    review = ModelReviewed(model="0", version="0", approved=True, by="ann", at=now())
    publisher.send(Topic.REVIEWS, review, key="0/0/approved")
    policy = RetrainingPolicy(model="0", at=now(), rules=(Rule(calendar=Calendar()),))
    publisher.send(Topic.POLICIES, policy, key="0")
    publisher.send(Topic.POLICY_DECISIONS, PolicyDecided(model="0", at=now(), decision="off", since=now()), key="0")
    days = (FolderDay(day=now().date(), logs=3, labels={"cited": 2}, cited=2),)
    stats = FolderStats(
        folder_id="0", partition=0, at=now(), examples=2, documents=1, days=days, left_out={"no label": 1}
    )
    publisher.send(Topic.FOLDER_STATS, stats, key="0")
    publisher.flush()
    variables |= {"FOLDTUNE_API__REQUESTS_PER_MINUTE": "1000000"}
    with running_api(variables, tmp_path) as api:
        assert previewed(api, data={})["complete"]
        program = Path(sys.executable).parent / "schemathesis"
        command: list[str | Path] = [program, "run", f"{api}/openapi.json", "--checks", ",".join(CHECKS)]
        bounds = [
            "--exclude-path",
            EXCLUDED,
            "--max-examples",
            "8",
            "--max-time",
            "40",
            "--seed",
            "1",
            "--phases",
            "coverage,fuzzing",
        ]
        done = subprocess.run(
            [*command, *bounds, "--suppress-health-check", "all", "--no-color"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
