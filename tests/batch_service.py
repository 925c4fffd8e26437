"""A fake AWS Batch: validates the calls of boto3's client against botocore's service model, runs the job definition's
command as a subprocess with substituted parameters and retries, and records the state change events.
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
    """The ClientException of boto3 for a refused call."""

    def __init__(self, message: str, operation: str) -> None:
        super().__init__({"Error": {"Code": "ClientException", "Message": message}}, operation)


class BatchService:
    """One queue and one job definition. Without a command, a test moves the jobs by ``begin`` and ``end``."""

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

    # ── API calls ────────────────────────────────────────────────────────────────────────────────────────────────────

    def submit_job(self, **call: Any) -> dict[str, Any]:
        """SubmitJob: each call creates a job, even under the same name."""
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
            "tags": call.get("tags", {}),
            "retryStrategy": call["retryStrategy"],
            "timeout": call["timeout"],
            "createdAt": _now(),
            "attempts": [],
            "container": {},
        }
        self.jobs[job_id] = job
        self._set_status(job, "SUBMITTED")
        self._set_status(job, "RUNNABLE")
        if self._command:
            self._start(job)
        return {"jobArn": job["jobArn"], "jobName": job["jobName"], "jobId": job_id}

    def describe_jobs(self, **call: Any) -> dict[str, Any]:
        """DescribeJobs."""
        _check("DescribeJobs", call)
        self.step()
        return {"jobs": [self.jobs[job_id] for job_id in call["jobs"] if job_id in self.jobs]}

    def get_paginator(self, name: str) -> Any:
        """ListJobs with a filter by name, two jobs a page."""
        assert name == "list_jobs"

        def paginate(**call: Any) -> list[dict[str, Any]]:
            _check("ListJobs", call)
            [pattern] = call["filters"][0]["values"]
            jobs = [job for job in self.jobs.values() if job["jobName"].lower() == pattern.lower()]
            return [{"jobSummaryList": jobs[start : start + 2]} for start in range(0, len(jobs) + 1, 2)]

        return SimpleNamespace(paginate=paginate)

    def terminate_job(self, **call: Any) -> dict[str, Any]:
        """TerminateJob: no effect on an ended job."""
        _check("TerminateJob", call)
        job = self.jobs[call["jobId"]]
        if job["status"] not in {"SUCCEEDED", "FAILED"}:
            self._reasons[job["jobId"]] = call["reason"]
            if process := self._processes.get(job["jobId"]):
                process.terminate()
            else:
                self.end(job["jobId"], None, statusReason=call["reason"])
        return {}

    # ── State transitions ───────────────────────────────────────────────────────────────────────────────────────

    def step(self) -> None:
        """Poll the processes; retry or end the jobs of those that exited."""
        for job_id, process in list(self._processes.items()):
            if (code := process.poll()) is None:
                continue
            del self._processes[job_id]
            job = self.jobs[job_id]
            code = 128 - code if code < 0 else code
            attempt = {"exitCode": code, "reason": "", "statusReason": "Essential container in task exited"}
            self._record_attempt(job, code)
            retry = self._action(job, attempt) == "RETRY" and len(job["attempts"]) < job["retryStrategy"]["attempts"]
            if code and retry and job_id not in self._reasons:
                self._set_status(job, "RUNNABLE")
                self._start(job)
                continue
            reason = self._reasons.get(job_id, attempt["statusReason"])
            self._set_status(job, "FAILED" if code else "SUCCEEDED", statusReason=reason)

    def begin(self, job_id: str) -> None:
        """Move a job to RUNNING."""
        job = self.jobs[job_id]
        job["startedAt"] = _now()
        job["container"] = {"logStreamName": f"trainer/default/{uuid.uuid4().hex}"}
        self._set_status(job, "RUNNING")

    def end(self, job_id: str, code: int | None, **more: Any) -> None:
        """Move a job without a command to SUCCEEDED or FAILED; no attempt is recorded if ``code`` is None."""
        job = self.jobs[job_id]
        if code is not None:
            self._record_attempt(job, code)
        self._set_status(job, "SUCCEEDED" if code == 0 else "FAILED", **more)

    def end_attempt(self, job_id: str, code: int) -> None:
        """End an attempt of a job without a command and queue the next one."""
        self._record_attempt(self.jobs[job_id], code)
        self._set_status(self.jobs[job_id], "RUNNABLE")

    def kill(self, job_id: str) -> None:
        """Send SIGKILL to a job's process group."""
        with suppress(ProcessLookupError):
            os.killpg(self._processes[job_id].pid, signal.SIGKILL)

    def close(self) -> None:
        """Kill the running processes."""
        for job_id, process in self._processes.items():
            self.kill(job_id)
            process.wait()

    def _start(self, job: dict[str, Any]) -> None:
        assert self._command
        arguments = [job["parameters"].get(part.removeprefix("Ref::"), part) for part in self._command]
        with self._log.open("ab") as log:
            self._processes[job["jobId"]] = subprocess.Popen(
                arguments, env=os.environ | self._environment, stdout=log, stderr=log, start_new_session=True
            )
        self._set_status(job, "STARTING")
        self.begin(job["jobId"])

    def _record_attempt(self, job: dict[str, Any], code: int) -> None:
        job["container"] = job["container"] | {"exitCode": code}
        times = {"startedAt": job.get("startedAt", _now()), "stoppedAt": _now()}
        job["attempts"] = [*job["attempts"], {"container": job["container"], **times}]

    def _action(self, job: dict[str, Any], attempt: dict[str, Any]) -> str:
        for rule in job["retryStrategy"]["evaluateOnExit"]:
            conditions = {name: pattern for name, pattern in rule.items() if name in _PATTERNS}
            if all(fnmatch(str(attempt[_PATTERNS[name]]), pattern) for name, pattern in conditions.items()):
                return str(rule["action"])
        return "RETRY"

    def _set_status(self, job: dict[str, Any], status: str, **more: Any) -> None:
        job |= {"status": status, **more}
        self.events.append(state_change(job))


def state_change(job: dict[str, Any]) -> dict[str, Any]:
    """The EventBridge event of a job's current state."""
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
