"""The record of a job's attempts on the object store, which ensures that a job is run, and paid for, once.

Neither a process nor AWS Batch recognizes a job that it has seen, and Kafka delivers at least once. In this order:

1. ``jobs/JOB/job.json`` is written, unless it is there: all attempts run the same.
2. ``jobs/JOB/attempt-N.submission.json`` is written *if absent*. Of all launchers and redeliveries one succeeds; it
   owns attempt N. One that is refused but finds its own token in it had succeeded, and lost the response.
3. The run is submitted. A launcher whose runs die with it renews ``attempt-N.heartbeat`` until the end; the log is
   ``attempt-N.log``.
4. ``attempt-N.outcome.json`` is written *if absent*: the first outcome stays. Only then is an end published.
5. The offset of the job's event is committed.

After a crash between any two steps the event is redelivered, and its consumer continues after the last recorded step.
An attempt without an outcome whose owner is gone (``ownership.py``) has either died with it, and attempt N + 1 may be
claimed; or, where runs outlive their launcher, its claim is taken over: ``attempt-N.takeover-K.json`` is
written *if absent*, for the next K. ``execution.py`` has the steps.
"""

import json
import re
from dataclasses import dataclass

from foldtune.events import Model, TrainingJob, UtcTime, now
from foldtune.object_keys import attempt_key, attempts_prefix, cancelled_key, job_key
from foldtune.object_store import ObjectStore
from launchers.port import Ending, RunOutcome

_CLAIM = re.compile(r"attempt-(\d+)\.(?:submission|takeover-(\d+))\.json$")


class Owner(Model):
    """Who claimed an attempt. ``token`` is new for each claimant, so that it recognizes its own claim."""

    token: str
    host: str
    pid: int
    process_started: float
    # The same in clock ticks since the machine's start, where it has /proc: clocks are set, ticks are not.
    process_ticks: int | None = None
    # Of a lease: when the owner is certainly gone. What it submitted lives on without it.
    until: UtcTime | None = None

    @property
    def leased(self) -> bool:
        """Whether the claim expires by itself."""
        return self.until is not None


@dataclass(frozen=True)
class Attempt:
    """What is on record of one attempt."""

    number: int
    owner: Owner
    outcome: RunOutcome | None
    # How often its claim was taken over.
    takeovers: int = 0

    @property
    def counts(self) -> bool:
        """Whether it uses up one of the job's attempts."""
        return self.outcome is None or self.outcome.ending is not Ending.INTERRUPTED


class Ledger:
    """The record of one job, identified by its request."""

    def __init__(self, store: ObjectStore, model: str, request_id: str) -> None:
        self._store = store
        self._model = model
        self.request_id = request_id
        self._job_key = job_key(model, request_id)
        self._cancelled_key = cancelled_key(model, request_id)
        self.job_uri = store.uri(self._job_key)

    def write_job(self, job: TrainingJob) -> None:
        """Write the job where its runs read it, once."""
        self._store.put_if_absent(self._job_key, job.encode())

    def read_job(self) -> TrainingJob | None:
        """The job, if one was written."""
        content = self._store.find(self._job_key)
        return TrainingJob.model_validate_json(content) if content is not None else None

    def attempts(self) -> list[Attempt]:
        """All attempts so far, in order."""
        takeovers: dict[int, int] = {}
        for key in self._store.list(attempts_prefix(self._model, self.request_id)):
            if match := _CLAIM.search(key):
                number = int(match[1])
                takeovers[number] = max(takeovers.get(number, 0), int(match[2] or 0))
        return [self._attempt(number, takeovers[number]) for number in sorted(takeovers)]

    def claim(self, number: int, owner: Owner) -> bool:
        """Claim an attempt; ``False`` where another has."""
        return self._claim(self._key(number, _claim_name(0)), owner)

    def take_over(self, attempt: Attempt, owner: Owner) -> bool:
        """Claim an attempt whose owner is gone; ``False`` where another was faster."""
        return self._claim(self._key(attempt.number, _claim_name(attempt.takeovers + 1)), owner)

    def renew(self, number: int) -> None:
        """Write the heartbeat of an attempt's owner."""
        self._store.put(self._key(number, "heartbeat"), json.dumps({"at": now().isoformat()}).encode())

    def heartbeat(self, number: int) -> bytes | None:
        """The owner's last heartbeat; only whether it changes means anything, clocks differ."""
        return self._store.find(self._key(number, "heartbeat"))

    def record_outcome(self, number: int, outcome: RunOutcome) -> tuple[RunOutcome, bool]:
        """Record how an attempt ended, unless an outcome is on record; returns the recorded one and whether it is new.

        Where the answer of the write was lost, the outcome is recorded and not called new.
        """
        key = self._key(number, "outcome.json")
        new = self._store.put_if_absent(key, outcome.model_dump_json(exclude_none=True).encode())
        return (outcome if new else RunOutcome.model_validate_json(self._store.get(key))), new

    def request_cancel(self) -> None:
        """Record that the request was cancelled."""
        self._store.put_if_absent(self._cancelled_key, b"")

    def cancel_requested(self) -> bool:
        """Whether the request was cancelled, on record."""
        return self._store.exists(self._cancelled_key)

    def reported_log_url(self, number: int) -> str | None:
        """The page that was reported as the log of the running attempt, empty for none; ``None`` before any report."""
        content = self._store.find(self._key(number, "log-url"))
        return content.decode() if content is not None else None

    def record_log_url(self, number: int, log_url: str) -> None:
        """Record that a page was reported."""
        self._store.put(self._key(number, "log-url"), log_url.encode())

    def _claim(self, key: str, owner: Owner) -> bool:
        if self._store.put_if_absent(key, owner.model_dump_json().encode()):
            return True
        return Owner.model_validate_json(self._store.get(key)).token == owner.token

    def _attempt(self, number: int, takeovers: int) -> Attempt:
        claim = self._store.get(self._key(number, _claim_name(takeovers)))
        outcome = self._store.find(self._key(number, "outcome.json"))
        recorded = RunOutcome.model_validate_json(outcome) if outcome is not None else None
        return Attempt(number, Owner.model_validate_json(claim), recorded, takeovers)

    def _key(self, number: int, name: str) -> str:
        return attempt_key(self._model, self.request_id, number, name)


def _claim_name(takeovers: int) -> str:
    return f"takeover-{takeovers}.json" if takeovers else "submission.json"
