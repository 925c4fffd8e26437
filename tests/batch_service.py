"""AWS Batch for tests: takes the calls of boto3's client, checks them against the service's own description, and runs
the job definition's command as a subprocess, with its parameters filled in, its attempts and its state change events.
"""

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters

QUEUE_ARN = "arn:aws:batch:us-east-1:123456789012:job-queue/foldtune"
_MODEL = botocore.session.get_session().get_service_model("batch")
_PATTERNS = {"onExitCode": "exitCode", "onReason": "reason", "onStatusReason": "statusReason"}


class RefusedError(ClientError):
    """As boto3 makes it: the call was refused, nothing was done."""

    def __init__(self, message: str, operation: str) -> None:
        super().__init__({"Error": {"Code": "ClientException", "Message": message}}, operation)


class BatchService:
    """One queue and one job definition. Without a command its jobs do nothing until they are told to ``end``."""

    exceptions = SimpleNamespace(ClientException=RefusedError)

    def __init__(
        self,
        command: Sequence[str] | None = None,
        environment: dict[str, str] | None = None,
        log: Path = Path(os.devnull),
    ) -> None:
        self._command = command
        self._environment = environment or {}
        self._log = log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._reasons: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []

    # ── The calls ────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit_job(self, **call: Any) -> dict[str, Any]:
        """SubmitJob: a new job each time, whatever its name."""
        _check("SubmitJob", call)
        if call["jobQueue"] != "foldtune":
            raise RefusedError(f"Job queue {call['jobQueue']} does not exist", "SubmitJob")
        job_id = str(uuid.uuid4())
        job = {
            "jobArn": f"arn:aws:batch:us-east-1:123456789012:job/{job_id}",
            "jobId": job_id,
            "jobName": call["jobName"],
            "jobQueue": QUEUE_ARN,
            "jobDefinition": call["jobDefinition"],
            "parameters": call["parameters"],
            "retryStrategy": call["retryStrategy"],
            "timeout": call["timeout"],
            "createdAt": _now(),
            "attempts": [],
            "container": {},
        }
        self.jobs[job_id] = job
        self._become(job, "SUBMITTED")
        self._become(job, "RUNNABLE")
        if self._command:
            self._start(job)
        return {"jobArn": job["jobArn"], "jobName": job["jobName"], "jobId": job_id}

    def describe_jobs(self, **call: Any) -> dict[str, Any]:
        """DescribeJobs."""
        _check("DescribeJobs", call)
        self.step()
        return {"jobs": [self.jobs[job_id] for job_id in call["jobs"] if job_id in self.jobs]}

    def get_paginator(self, name: str) -> Any:
        """ListJobs with a filter by name, two to a page."""
        assert name == "list_jobs"

        def paginate(**call: Any) -> list[dict[str, Any]]:
            _check("ListJobs", call)
            [pattern] = call["filters"][0]["values"]
            found = [job for job in self.jobs.values() if job["jobName"].lower() == pattern.lower()]
            return [{"jobSummaryList": found[start : start + 2]} for start in range(0, len(found) + 1, 2)]

        return SimpleNamespace(paginate=paginate)

    def terminate_job(self, **call: Any) -> dict[str, Any]:
        """TerminateJob: without effect on what has ended."""
        _check("TerminateJob", call)
        job = self.jobs[call["jobId"]]
        if job["status"] not in {"SUCCEEDED", "FAILED"}:
            self._reasons[job["jobId"]] = call["reason"]
            if process := self._processes.get(job["jobId"]):
                process.terminate()
            else:
                self.end(job["jobId"], None, statusReason=call["reason"])
        return {}

    # ── What happens by itself ───────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """Notice which processes have ended; repeat or end their jobs."""
        for job_id, process in list(self._processes.items()):
            if (code := process.poll()) is None:
                continue
            del self._processes[job_id]
            job = self.jobs[job_id]
            code = 128 - code if code < 0 else code
            attempt = {"exitCode": code, "reason": "", "statusReason": "Essential container in task exited"}
            self._attempted(job, code)
            again = self._action(job, attempt) == "RETRY" and len(job["attempts"]) < job["retryStrategy"]["attempts"]
            if code and again and job_id not in self._reasons:
                self._become(job, "RUNNABLE")
                self._start(job)
                continue
            reason = self._reasons.get(job_id, attempt["statusReason"])
            self._become(job, "FAILED" if code else "SUCCEEDED", statusReason=reason)

    def begin(self, job_id: str) -> None:
        """Let a job without a command run."""
        job = self.jobs[job_id]
        job["startedAt"] = _now()
        job["container"] = {"logStreamName": f"trainer/default/{uuid.uuid4().hex}"}
        self._become(job, "RUNNING")

    def end(self, job_id: str, code: int | None, **more: Any) -> None:
        """End a job without a command."""
        job = self.jobs[job_id]
        if code is not None:
            self._attempted(job, code)
        self._become(job, "SUCCEEDED" if code == 0 else "FAILED", **more)

    def end_attempt(self, job_id: str, code: int) -> None:
        """End an attempt of a job without a command, and let it wait for the next one."""
        self._attempted(self.jobs[job_id], code)
        self._become(self.jobs[job_id], "RUNNABLE")

    def kill(self, job_id: str) -> None:
        """End a job's process without a warning."""
        with suppress(ProcessLookupError):
            os.killpg(self._processes[job_id].pid, signal.SIGKILL)

    def close(self) -> None:
        """End what still runs."""
        for job_id, process in self._processes.items():
            self.kill(job_id)
            process.wait()

    def _start(self, job: dict[str, Any]) -> None:
        assert self._command
        filled = [job["parameters"].get(part.removeprefix("Ref::"), part) for part in self._command]
        with self._log.open("ab") as log:
            self._processes[job["jobId"]] = subprocess.Popen(
                filled, env=os.environ | self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._become(job, "STARTING")
        self.begin(job["jobId"])

    def _attempted(self, job: dict[str, Any], code: int) -> None:
        job["container"] = job["container"] | {"exitCode": code}
        times = {"startedAt": job.get("startedAt", _now()), "stoppedAt": _now()}
        job["attempts"] = [*job["attempts"], {"container": job["container"], **times}]

    def _action(self, job: dict[str, Any], attempt: dict[str, Any]) -> str:
        for rule in job["retryStrategy"]["evaluateOnExit"]:
            tests = {name: pattern for name, pattern in rule.items() if name in _PATTERNS}
            if all(fnmatch(str(attempt[_PATTERNS[name]]), pattern) for name, pattern in tests.items()):
                return str(rule["action"])
        return "RETRY"

    def _become(self, job: dict[str, Any], status: str, **more: Any) -> None:
        job |= {"status": status, **more}
        self.events.append(state_change(job))


def state_change(job: dict[str, Any]) -> dict[str, Any]:
    """The event of EventBridge that says how a job stands now."""
    return {
        "version": "0",
        "id": str(uuid.uuid4()),
        "detail-type": "Batch Job State Change",
        "source": "aws.batch",
        "account": "123456789012",
        "time": "2026-03-01T00:00:00Z",
        "region": "us-east-1",
        "resources": [job["jobArn"]],
        "detail": {**job, "isCancelled": False, "isTerminated": False},
    }


def _check(operation: str, call: dict[str, Any]) -> None:
    shape = _MODEL.operation_model(operation).input_shape
    assert shape
    validate_parameters(call, shape)


def _now() -> int:
    return int(time.time() * 1000)
