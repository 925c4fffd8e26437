"""The budget of trainings on rented machines: reserved before a launch, replaced by the real cost after the end.

``spend/MODEL/YYYY-MM.json`` holds, for each job of a model and a month, first the most that it can cost, then what it
did cost; ``spend/_all/YYYY-MM.json`` the same of all models, where these have a budget. Updates are conditional on the
version that they were made from, so two launches at once are both counted. The month is that of the job's publication,
so that a redelivered job is found in the same file.
"""

from collections.abc import Callable, Iterator

import structlog

from foldtune.events import Model, TrainingJob
from foldtune.object_keys import spend_key
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from launchers.port import Budget, Ending, RunOutcome, job_segment

log = structlog.get_logger(__name__)

_Jobs = dict[str, float]
# No model's name begins so.
_ALL_MODELS = "_all"


class Spend(Model):
    """US dollars by job of one model in one month."""

    jobs: _Jobs


class BatchBudget(Budget):
    """Bounds the cost of a job, and the costs in a month: of each model's jobs, and of all."""

    def __init__(self, store: ObjectStore, settings: Settings) -> None:
        self._store = store
        self._batch = settings.batch
        self._attempts = settings.trainer.max_attempts
        self._hourly_price = max(settings.batch.hourly_prices.values())

    def reserve(self, job: TrainingJob) -> RunOutcome | None:
        """Reserve the most that a job can cost, once; the outcome of a job that would exceed a bound.

        Each attempt ends at its timeout, and one that did is not retried. Counted is the time in which a container
        runs, not that in which a machine starts, waits or stops.
        """
        hours = self._attempts * job.max_seconds / 3600
        max_cost = round(hours * self._hourly_price, 4)
        terms = f"{self._attempts} attempts of {job.max_seconds} s at {self._hourly_price:g} dollars an hour"
        if max_cost > self._batch.max_job_dollars:
            bound = f"at most batch.max_job_dollars {self._batch.max_job_dollars:g}"
            return RunOutcome(ending=Ending.FAILED, reasons=(f"cost: {max_cost:.2f} dollars ({terms}), {bound}",))
        for owner, limit, setting in self._budgets(job):
            if (total := self._reserve(job, owner, max_cost, limit)) is not None:
                # What was reserved of another budget is released by ``settle``, which follows every refusal.
                whose = "all models" if owner == _ALL_MODELS else repr(owner)
                month = f"{job.published_at:%Y-%m}"
                reason = f"cost: {total:.2f} dollars for {whose} in {month} ({terms}), at most {setting} {limit:g}"
                return RunOutcome(ending=Ending.FAILED, retryable=True, reasons=(reason,))
        return None

    def _budgets(self, job: TrainingJob) -> Iterator[tuple[str, float, str]]:
        yield job.request.model, self._batch.max_month_dollars, "batch.max_month_dollars"
        if self._batch.max_total_dollars is not None:
            yield _ALL_MODELS, self._batch.max_total_dollars, "batch.max_total_dollars"

    def _reserve(self, job: TrainingJob, owner: str, max_cost: float, bound: float) -> float | None:
        """Reserve ``max_cost`` of one budget; the month's total if that would exceed the bound."""
        refused: list[float] = []

        def add(jobs: _Jobs) -> _Jobs:
            # Called again where the update met another.
            refused.clear()
            if job_segment(job) in jobs:
                return jobs
            if (total := sum(jobs.values()) + max_cost) > bound:
                refused.append(total)
                return jobs
            return jobs | {job_segment(job): max_cost}

        self._update(job, owner, add)
        return refused[0] if refused else None

    def settle(self, job: TrainingJob, hours: float) -> None:
        """Replace a job's reservation, if any, with the cost of the ``hours`` that it took."""
        cost = round(hours * self._hourly_price, 4)
        for owner, _, _ in self._budgets(job):
            self._update(job, owner, lambda jobs: jobs | {job_segment(job): cost} if job_segment(job) in jobs else jobs)

    def _update(self, job: TrainingJob, owner: str, change: Callable[[_Jobs], _Jobs]) -> None:
        key = spend_key(owner, f"{job.published_at:%Y-%m}")
        while True:
            content, etag = self._store.find_with_etag(key) or (None, "")
            before = Spend.model_validate_json(content).jobs if content else {}
            after = change(before)
            if after == before:
                return
            changed = Spend(jobs=after).model_dump_json().encode()
            if self._store.put_if_match(key, changed, etag) if etag else self._store.put_if_absent(key, changed):
                break
        log.info(
            "spend updated",
            request_id=job.request.request_id,
            model=owner,
            month=f"{job.published_at:%Y-%m}",
            dollars=round(sum(after.values()), 4),
            job_dollars=after[job_segment(job)],
        )
