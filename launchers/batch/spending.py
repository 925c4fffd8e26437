"""What trainings on rented machines may cost: checked before one is launched, corrected when it has ended.

``spend/MODEL/YYYY-MM.json`` holds, for each job of a model and a month, first the most that it can cost, then what it
did. Every change replaces the version that it was made from, so of two launches at once both are counted. The month is
that of the job's publication: a job that is delivered again, later, is found where it was.
"""

from collections.abc import Callable

import structlog

from foldtune.errors import ObjectMissingError
from foldtune.events import Model, TrainingJob
from foldtune.object_keys import spend_key
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from launchers.port import Budget, Ending, RunOutcome, job_segment

log = structlog.get_logger(__name__)

_Jobs = dict[str, float]


class Spend(Model):
    """US dollars by job of one model in one month."""

    jobs: _Jobs


class Spending(Budget):
    """The account of all models."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store = store
        self._batch = settings.batch
        self._attempts = settings.trainer.max_attempts
        self._price = max(settings.batch.hourly_prices.values())

    def reserve(self, job: TrainingJob) -> RunOutcome | None:
        """Set aside the most that a job can cost, once; where that is over a bound: why it is not launched.

        Each attempt ends at its timeout, and one that did is not repeated. Counted is the time in which a container
        runs, not that in which a machine starts, waits or stops.
        """
        hours = self._attempts * job.max_seconds / 3600
        most = round(hours * self._price, 4)
        sum_of = f"{self._attempts} attempts of {job.max_seconds} s at {self._price:g} dollars an hour"
        if most > self._batch.max_job_dollars:
            bound = f"at most batch.max_job_dollars {self._batch.max_job_dollars:g}"
            return RunOutcome(ending=Ending.FAILED, reasons=(f"cost: {most:.2f} dollars ({sum_of}), {bound}",))
        refused: list[str] = []

        def add(jobs: _Jobs) -> _Jobs:
            refused.clear()
            if job_segment(job) in jobs:
                return jobs
            if (total := sum(jobs.values()) + most) > self._batch.max_month_dollars:
                bound = f"at most batch.max_month_dollars {self._batch.max_month_dollars:g}"
                month = f"{job.published_at:%Y-%m}"
                refused.append(f"cost: {total:.2f} dollars for {job.request.model!r} in {month} ({sum_of}), {bound}")
                return jobs
            return jobs | {job_segment(job): most}

        self._change(job, add)
        return RunOutcome(ending=Ending.FAILED, retryable=True, reasons=tuple(refused)) if refused else None

    def settle(self, job: TrainingJob, hours: float) -> None:
        """Put what a job took in the place of what was set aside for it."""
        cost = round(hours * self._price, 4)
        self._change(job, lambda jobs: jobs | {job_segment(job): cost} if job_segment(job) in jobs else jobs)

    def _change(self, job: TrainingJob, change: Callable[[_Jobs], _Jobs]) -> None:
        key = spend_key(job.request.model, f"{job.published_at:%Y-%m}")
        while True:
            content, tag = self._read(key)
            before = Spend.model_validate_json(content).jobs if content else {}
            after = change(before)
            if after == before:
                return
            changed = Spend(jobs=after).model_dump_json().encode()
            if self._store.put_if_match(key, changed, tag) if tag else self._store.put_if_absent(key, changed):
                break
        log.info(
            "spend updated",
            model=job.request.model,
            month=f"{job.published_at:%Y-%m}",
            dollars=round(sum(after.values()), 4),
            job_dollars=after[job_segment(job)],
        )

    def _read(self, key: str) -> tuple[bytes | None, str]:
        try:
            return self._store.get_with_etag(key)
        except ObjectMissingError:
            return None, ""
