"""The newest status of every request, and where each request stands on its topic."""

import asyncio
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from heapq import merge
from typing import Annotated, Any, NamedTuple, Self

import msgspec
from pydantic import ValidationError
from sortedcontainers import SortedList

from api.view import Time
from foldtune.events import SCHEMA_VERSION, FineTuneStatus, State
from foldtune.status_order import StatusRecord, merge_status, supersedes

# They stay in memory; a regular expression would take longer than the rest.
_RequestId = Annotated[str, msgspec.Meta(max_length=128)]
_Model = Annotated[str, msgspec.Meta(max_length=64)]


class _Status(msgspec.Struct):
    """The fields of a status by which it is kept and listed: all of them would take fifteen times as long."""

    request_id: _RequestId
    model: _Model
    state: State
    at: Time
    log_url: str | None = None
    model_uri: str | None = None
    schema_version: int = 1


class StatusEntry(msgspec.Struct, frozen=True, gc=False):
    """A status as it was published, or as it was merged with earlier ones."""

    model: str
    request_id: str
    partition: int
    offset: int
    state: State
    at: float
    has_log_url: bool
    model_uri: str | None
    json: bytes

    @classmethod
    def of(cls, status: "_Status | FineTuneStatus", partition: int, offset: int, json: bytes) -> Self:
        """The entry of a status that was decoded from ``json``, or that is encoded as it."""
        return cls(
            model=status.model,
            request_id=status.request_id,
            partition=partition,
            offset=offset,
            state=status.state,
            at=status.at.timestamp(),
            has_log_url=status.log_url is not None,
            model_uri=status.model_uri,
            json=json,
        )

    @property
    def terminal(self) -> bool:
        """Whether its state is final."""
        return self.state.terminal

    @property
    def etag(self) -> str:
        """Changes with the status."""
        return f'"{self.partition}-{self.offset}-{len(self.json)}"'

    def status(self) -> FineTuneStatus:
        """The whole status."""
        return FineTuneStatus.model_validate_json(self.json)

    @property
    def sort_key(self) -> "SortKey":
        """By the time of the status."""
        return SortKey(self.at, self.model, self.request_id)


class SortKey(NamedTuple):
    """A place in the list of requests."""

    at: float
    model: str
    request_id: str


class Page(NamedTuple):
    """Entries from the newest to the oldest, and where the next page begins."""

    entries: list[StatusEntry]
    after: SortKey | None


Keep = Callable[[StatusEntry], bool]
# Of entries that a filter leaves out: a page that looked at so many is returned as it is.
_MAX_LOOKED_AT = 5_000


class RequestTable:
    """The requests by id; of one id there may be several models' requests."""

    def __init__(self) -> None:
        self._by_id: dict[str, tuple[StatusEntry, ...]] = {}
        self._order: SortedList[SortKey] = SortedList()
        self._of_model: dict[str, SortedList[SortKey]] = {}
        self._decoder = msgspec.json.Decoder(_Status)
        self._waiting: dict[tuple[str, str], set[asyncio.Event]] = {}
        # Whether this process ends: nothing is to be waited for any more.
        self.ends = False

    def __len__(self) -> int:
        return len(self._order)

    def apply(self, record: Any) -> StatusEntry | None:
        """Merge a record of ``fine-tune-status``, in any order and however often; the new entry, if it changes one.

        Raises ``ValueError``.
        """
        new = self._entry(record)
        known = self._by_id.get(new.request_id, ())
        old = next((entry for entry in known if entry.model == new.model), None)
        if old is not None:
            if old.terminal and not new.terminal:
                return None
            if (old.terminal and new.terminal) or (old.has_log_url and not new.has_log_url):
                new = _merged(old, new)
            elif not supersedes(new, old):
                return None
            if new == old:
                return None
            self._order.remove(old.sort_key)
            self._of_model[old.model].remove(old.sort_key)
        others = tuple(entry for entry in known if entry is not old)
        # The id's own status first: that of the request that was told of last.
        self._by_id[new.request_id] = tuple(sorted((*others, new), key=lambda entry: entry.sort_key, reverse=True))
        self._order.add(new.sort_key)
        self._of_model.setdefault(new.model, SortedList()).add(new.sort_key)
        for changed in self._waiting.get((new.model, new.request_id), ()):
            changed.set()
        return new

    def find(self, request_id: str, keep: Keep) -> StatusEntry | None:
        """Of the id's requests the first that ``keep`` takes."""
        return next((entry for entry in self._by_id.get(request_id, ()) if keep(entry)), None)

    def get(self, model: str, request_id: str) -> StatusEntry | None:
        """A model's request."""
        return self.find(request_id, lambda entry: entry.model == model)

    def page(self, limit: int, keep: Keep, after: SortKey | None = None, models: Collection[str] | None = None) -> Page:
        """At most ``limit`` entries that ``keep`` takes, the newest first; fewer do not mean that there are no more.

        With ``models``, no others are looked at: where the next page begins would name one of them.
        """
        entries: list[StatusEntry] = []
        last: SortKey | None = None
        lists = [self._order] if models is None else [self._of_model[name] for name in models if name in self._of_model]
        places = merge(
            *(each.irange(maximum=after, inclusive=(True, False), reverse=True) for each in lists), reverse=True
        )
        for number, place in enumerate(places):
            if len(entries) == limit or number == _MAX_LOOKED_AT:
                return Page(entries, last)
            last = place
            entry = self.get(place.model, place.request_id)
            if entry is not None and keep(entry):
                entries.append(entry)
        return Page(entries, None)

    def end(self) -> None:
        """Have all that watch a request end."""
        self.ends = True
        for changed in (changed for watching in self._waiting.values() for changed in watching):
            changed.set()

    @contextmanager
    def watch(self, model: str, request_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever the request has a new status; whoever waits for it clears it."""
        key, changed = (model, request_id), asyncio.Event()
        self._waiting.setdefault(key, set()).add(changed)
        try:
            yield changed
        finally:
            self._waiting[key].discard(changed)
            if not self._waiting[key]:
                del self._waiting[key]

    def _entry(self, record: Any) -> StatusEntry:
        try:
            status = self._decoder.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if status.schema_version > SCHEMA_VERSION:
            msg = f"schema_version: {status.schema_version} is of a newer release"
            raise ValueError(msg)
        return StatusEntry.of(status, record.partition, record.offset, record.value)


def _merged(old: StatusEntry, new: StatusEntry) -> StatusEntry:
    """By the rule that all readers have (``foldtune.status_order``); raises ``ValueError``."""
    try:
        records = [
            StatusRecord(partition=entry.partition, offset=entry.offset, status=entry.status()) for entry in (old, new)
        ]
    except ValidationError as error:
        raise ValueError(str(error)) from error
    (merged,) = merge_status(records[:1], records[1])
    return StatusEntry.of(merged.status, merged.partition, merged.offset, merged.status.encode())


class Place(NamedTuple):
    """Where a record stands."""

    partition: int
    offset: int


class _Request(msgspec.Struct):
    request_id: _RequestId
    model: _Model
    type: str = "fine_tune_requested"


class RequestPlaces:
    """Where the first event of each request stands on ``fine-tune-requests``."""

    def __init__(self) -> None:
        self._places: dict[tuple[str, str], Place] = {}
        self._decoder = msgspec.json.Decoder(_Request)

    def apply(self, record: Any) -> None:
        """Note a record's place; raises ``ValueError``."""
        try:
            request = self._decoder.decode(record.value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if request.type == "fine_tune_requested":
            self._places.setdefault((request.model, request.request_id), Place(record.partition, record.offset))

    def get(self, model: str, request_id: str) -> Place | None:
        """The place of a request."""
        return self._places.get((model, request_id))
