"""Who runs what, once: the record of a job's attempts on the object store.

Neither a process nor AWS Batch knows a job again, and Kafka delivers at least once, so what keeps a job from being paid
for twice is this:

1. ``jobs/JOB/job.json`` is written, unless it is there: all attempts run the same.
2. ``jobs/JOB/attempt-N.submission.json`` is written *if absent*. Of all launchers and redeliveries one succeeds; it
   owns attempt N. Whoever gets no, but finds its own token in it, had succeeded and lost the answer.
3. The run is started. Its owner renews ``attempt-N.heartbeat`` until the end and uploads ``attempt-N.log``.
4. ``attempt-N.outcome.json`` is written. What it says is settled; only now is anything published about the end.
5. The offset of the job's event is committed.

A crash between any two steps leads to the event being delivered again, and its reader continues where the record ends:
attempt N + 1 may be claimed only when attempt N has an outcome, or its owner is dead (``ownership.py``).

Functions have no long life, and so no heartbeat: what they do in the place of 3 to 5 is in ``dispatch.py``.
"""

import json
import re
from dataclasses import dataclass

from foldtune.errors import ObjectMissingError
from foldtune.events import Model, TrainingJob, UtcTime, now
from foldtune.object_keys import attempt_key, job_prefix
from foldtune.object_store import ObjectStore
from launchers.port import Ending, RunOutcome

_SUBMISSION = re.compile(r"attempt-(\d+)\.submission\.json$")


class Owner(Model):
    """A process that claimed an attempt. ``token`` is new for each claimant, so that it knows its own claim again."""

    token: str
    host: str
    pid: int
    process_started: float
    # Set by a function, which has no heartbeat: when it is surely gone. What it started lives on without it.
    until: UtcTime | None = None


@dataclass(frozen=True)
class Attempt:
    """What is on record of one attempt."""

    number: int
    owner: Owner
    outcome: RunOutcome | None
    # Of this version of the claim.
    tag: str = ""

    @property
    def counts(self) -> bool:
        """Whether it uses up one of the job's attempts."""
        return self.outcome is None or self.outcome.ending is not Ending.INTERRUPTED


def log_key(job: TrainingJob, attempt: int) -> str:
    """Where the log of an attempt is uploaded to."""
    return attempt_key(job.request.model, job.request.request_id, attempt, "log")


class Ledger:
    """The record of one job's attempts, as one claimant sees it."""

    def __init__(self, store: ObjectStore, job: TrainingJob, owner: Owner) -> None:
        self._store = store
        self._job = job
        self._owner = owner
        self._prefix = job_prefix(job.request.model, job.request.request_id)

    def write_job(self) -> str:
        """Put the job where its runs read it, and return its address."""
        key = f"{self._prefix}/job.json"
        self._store.put_if_absent(key, self._job.encode())
        return self._store.uri(key)

    def attempts(self) -> list[Attempt]:
        """All attempts so far, in order."""
        found = (_SUBMISSION.search(key) for key in self._store.list(f"{self._prefix}/attempt-"))
        return [self._attempt(number) for number in sorted(int(match[1]) for match in found if match)]

    def claim(self, number: int) -> bool:
        """Become the owner of an attempt; ``False`` where another is."""
        key = self._key(number, "submission.json")
        if self._store.put_if_absent(key, self._owner.model_dump_json().encode()):
            return True
        return self.mine(self._attempt(number))

    def take_over(self, attempt: Attempt) -> bool:
        """Become the owner in the place of one that is gone; ``False`` where another was faster."""
        key = self._key(attempt.number, "submission.json")
        if self._store.put_if_match(key, self._owner.model_dump_json().encode(), attempt.tag):
            return True
        return self.mine(self._attempt(attempt.number))

    def mine(self, attempt: Attempt) -> bool:
        """Whether this claimant made the attempt."""
        return attempt.owner.token == self._owner.token

    def renew(self, number: int) -> None:
        """Show that the attempt's owner lives."""
        self._store.put(self._key(number, "heartbeat"), json.dumps({"at": now().isoformat()}).encode())

    def heartbeat(self, number: int) -> bytes | None:
        """What the owner wrote last; only whether it changes means anything, clocks differ."""
        return self._get(number, "heartbeat")

    def record(self, number: int, outcome: RunOutcome) -> None:
        """Settle how an attempt ended."""
        self._store.put(self._key(number, "outcome.json"), outcome.model_dump_json(exclude_none=True).encode())

    def record_once(self, number: int, outcome: RunOutcome) -> tuple[RunOutcome, bool]:
        """Settle how an attempt ended, unless it is; what is on record, and whether that is new."""
        key = self._key(number, "outcome.json")
        new = self._store.put_if_absent(key, outcome.model_dump_json(exclude_none=True).encode())
        return (outcome if new else RunOutcome.model_validate_json(self._store.get(key))), new

    def _attempt(self, number: int) -> Attempt:
        claim, tag = self._store.get_with_etag(self._key(number, "submission.json"))
        outcome = self._get(number, "outcome.json")
        ended = RunOutcome.model_validate_json(outcome) if outcome is not None else None
        return Attempt(number, Owner.model_validate_json(claim), ended, tag)

    def _get(self, number: int, name: str) -> bytes | None:
        try:
            return self._store.get(self._key(number, name))
        except ObjectMissingError:
            return None

    def _key(self, number: int, name: str) -> str:
        return attempt_key(self._job.request.model, self._job.request.request_id, number, name)
