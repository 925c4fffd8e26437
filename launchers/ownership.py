"""Ownership of attempts: the right to submit one, and the detection of owners that are gone.

The two kinds follow from ``Launcher.detached``. This module imports no psutil: functions have none.
"""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Protocol

from foldtune.events import now
from launchers.ledger import Attempt, Owner
from launchers.periodic import boottime

# Long enough for a few calls to the object store, the brokers and the service.
LEASE = timedelta(minutes=2)
# By which the clocks of two launchers may differ: an owner submits nothing after ``until`` by its clock; another
# takes over this much later by its own.
MAX_SKEW = timedelta(minutes=5)


class Ownership(Protocol):
    """How one execution owns attempts, and judges other owners."""

    def new_owner(self) -> Owner:
        """The owner to claim an attempt as."""

    def owns(self, attempt: Attempt) -> bool:
        """Whether this execution claimed the attempt and may continue it."""

    def owner_is_gone(self, attempt: Attempt) -> bool:
        """Whether the owner will certainly not touch the attempt again; ``False`` in doubt."""

    def hold(self, attempt: int) -> None:
        """Keep a claimed attempt until ``release``."""

    def release(self) -> None:
        """Stop holding; without effect where nothing is held."""

    @property
    def valid(self) -> bool:
        """Whether others still respect the claim."""


class LeaseOwnership(Ownership):
    """Claims that expire. What was submitted under one lives on without it, so nothing renews it.

    A lease cannot be given back: after an error, whether the submission took effect is known only when it has expired.
    """

    def __init__(
        self,
        submit_timeout: timedelta,
        lease: timedelta = LEASE,
        clock: Callable[[], datetime] = now,
        elapsed: Callable[[], float] = boottime,
    ) -> None:
        """``lease`` is how long the claimant may submit, ``submit_timeout`` how long a submission may take after."""
        self._submit_timeout = submit_timeout
        self._lease = lease
        self._clock = clock
        self._elapsed = elapsed
        self._deadline, self._elapsed_deadline = clock(), elapsed()

    def new_owner(self) -> Owner:
        self._deadline = self._clock() + self._lease
        self._elapsed_deadline = self._elapsed() + self._lease.total_seconds()
        until = self._deadline + self._submit_timeout
        # A lease has no process: ``host``, ``pid`` and ``process_started`` are placeholders.
        return Owner(token=uuid.uuid4().hex, host="function", pid=0, process_started=0.0, until=until)

    def owns(self, attempt: Attempt) -> bool:  # noqa: ARG002
        return False

    def owner_is_gone(self, attempt: Attempt) -> bool:
        return attempt.owner.until is not None and self._clock() - MAX_SKEW > attempt.owner.until

    def hold(self, attempt: int) -> None:
        pass

    def release(self) -> None:
        pass

    @property
    def valid(self) -> bool:
        # Others read ``until``; a clock that is set back must not make this owner's time longer.
        return self._clock() < self._deadline and self._elapsed() < self._elapsed_deadline
