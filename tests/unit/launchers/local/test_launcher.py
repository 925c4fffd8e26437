"""The subprocess launcher: logs, time limit, environment, and that no process outlives it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from foldtune.events import TrainingJob
from foldtune.settings import S3Settings, Settings, settings_environment
from foldtune.testing import MemoryObjectStore
from launchers.local.launcher import LocalLauncher
from launchers.port import Ending, LaunchError, Run, RunBusyError
from launchers.run_outcomes import outcome_of
from tests.unit.launchers.conftest import MakeLocal, make_job
from tests.unit.launchers.test_port import HANG, ended
from trainers.exit_codes import ExitCode

URI = "s3://memory/jobs/j/job.json"


def test_the_trainer_gets_job_and_settings_and_its_log_is_uploaded(
    make_local: MakeLocal, store: MemoryObjectStore, job: TrainingJob, tmp_path: Path
) -> None:
    launcher = make_local(
        "import os, sys; from foldtune.settings import Settings; print(sys.argv[1], os.environ['MALLOC_TOP_PAD_'],"
        " Settings().trainer.work_dir, file=sys.stderr)"
    )
    launcher.submit(run := Run(job, URI, 1))
    outcome = ended(launcher, run)
    assert outcome.log_uri
    log = store.get(store.key(outcome.log_uri)).decode()
    assert URI in log
    assert str(tmp_path) in log
    assert outcome.log_uri.endswith("/attempt-1.log")


@pytest.mark.slow
def test_a_run_past_its_time_is_terminated_then_killed(make_local: MakeLocal, tmp_path: Path) -> None:
    deaf = f"import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); {HANG}"
    launcher = make_local(deaf, grace_seconds=0.5)
    launcher.submit(run := Run(make_job("slow", max_seconds=1), URI, 1))
    outcome = ended(launcher, run)
    assert outcome.ending is Ending.FAILED
    assert outcome.final
    assert "max_seconds: 1" in outcome.reasons[0]


def test_a_signal_is_named() -> None:
    outcome = outcome_of(-signal.SIGSEGV)
    assert outcome.retryable
    assert "SIGSEGV" in outcome.reasons[0]


def test_a_failed_run_tells_the_trainers_last_error(make_local: MakeLocal, job: TrainingJob) -> None:
    line = '{"error": "hf://org/model: unknown host", "event": "training failed", "level": "error"}'
    launcher = make_local(f"print('{line}'); print('no JSON'); print('[]'); raise SystemExit({ExitCode.TRY_AGAIN:d})")
    launcher.submit(run := Run(job, URI, 1))
    outcome = ended(launcher, run)
    assert outcome.retryable
    assert outcome.reasons[1:] == ("hf://org/model: unknown host",)


def test_a_run_is_busy_while_an_earlier_one_of_its_job_runs(make_local: MakeLocal, job: TrainingJob) -> None:
    first, second = make_local(HANG), make_local("")
    first.submit(earlier := Run(job, URI, 1))
    later = Run(job, URI, 2)
    with pytest.raises(RunBusyError):
        second.submit(later)
    first.interrupt(earlier)
    ended(first, earlier)
    second.submit(later)
    assert ended(second, later).ending is Ending.SUCCEEDED


def test_a_folder_that_cannot_be_created_is_a_launch_error(
    store: MemoryObjectStore, job: TrainingJob, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    settings = Settings.model_validate({"trainer": {"work_dir": tmp_path / "file"}})
    with pytest.raises(LaunchError):
        LocalLauncher(settings, store).submit(Run(job, URI, 1))


def test_settings_pass_through_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings.model_validate(
        {
            "s3": S3Settings.model_validate({"access_key_id": "key", "secret_access_key": "secret"}),
            "trainer": {"model_folders": ["/models"], "max_duration": "PT3H"},
            "policy": {"rules": [{"model": "support", "cooldown": "PT1H"}]},
        }
    )
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings


PARENT = f"""
import sys
from pathlib import Path
from foldtune.events import TrainingJob
from foldtune.settings import Settings
from foldtune.testing import MemoryObjectStore
from launchers.port import Run
from launchers.local.launcher import LocalLauncher

job = TrainingJob.model_validate_json(sys.argv[1])
command = (sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)")
settings = Settings.model_validate({{"trainer": {{"work_dir": sys.argv[2]}}}})
launcher = LocalLauncher(settings, MemoryObjectStore(), command=command)
launcher.submit(Run(job, {URI!r}, 1))
{HANG}
"""


@pytest.mark.slow
def test_the_trainer_dies_with_a_killed_launcher(job: TrainingJob, tmp_path: Path) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", PARENT, job.encode().decode(), str(tmp_path)])
    try:
        trainer = psutil.Process(int(_first_line(tmp_path / "launcher")))
    finally:
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()
    gone, alive = psutil.wait_procs([trainer], timeout=10)
    assert gone
    assert not alive


def _first_line(folder: Path) -> str:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for log in folder.glob("*.log"):
            if (text := log.read_text()).endswith("\n"):
                return text
        time.sleep(0.02)
    raise AssertionError("the trainer did not start")
