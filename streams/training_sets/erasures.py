"""Erasures: what is erased, and what that leaves of an event.

The state names nobody: an erased subject is kept as a keyed digest, with the time up to which it is erased. Each is one
key of the table that names its whole content, so that a redelivery, or a worker that knows less, overwrites nothing.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from foldtune.bounds import Bounds
from foldtune.settings import WorkerSettings
from foldtune.spellings import spellings
from streams.errors import ErasureKeyMissingError
from streams.training_sets.state_events import (
    ChatLog,
    DocumentUpserted,
    ErasureRequested,
    Feedback,
    RetrievedPassage,
    StateEvent,
    StateRecord,
    tombstone,
)

if TYPE_CHECKING:
    # A preview of an erasure needs no tables, and with them Faust and RocksDB.
    from streams.partitions.changelog_table import Changes, Table

_ERASED_PREFIX = b"e|"
# Beside each until it is confirmed: the id of the erasure, for its confirmation.
_UNCONFIRMED_PREFIX = b"q|"
# More than enough against collisions.
_DIGEST_BYTES = 16


class ErasedSubject(Struct, frozen=True, array_like=True):
    """What is kept of an erasure."""

    # One of a newer release is kept, and does nothing here.
    subject: str
    # Whether it is erased in one folder only; the digest is of that folder, too.
    in_folder: bool
    digest: str
    key_id: str
    # Events that occurred up to then are covered, whenever they arrive.
    until: datetime


@dataclass(frozen=True)
class ErasureRules:
    """How erasures are kept: the keys of the digests, and how far clocks may be ahead."""

    # The first makes new digests; the others made some before.
    keys: tuple[bytes, ...]
    future: timedelta

    @classmethod
    def of(cls, worker: WorkerSettings, bounds: Bounds) -> "ErasureRules":
        """By the settings. Without keys, the digests can be guessed at by whoever reads the state."""
        secrets = worker.erasure_keys.get_secret_value().split(",") if worker.erasure_keys else []
        # The key without a secret comes last: it made the digests from before there was one.
        keys = tuple(hashlib.sha256(secret.strip().encode()).digest() for secret in (*secrets, worker.app_id))
        return cls(keys, bounds.future)

    def erased(self, event: ErasureRequested) -> ErasedSubject:
        """What is kept of an erasure."""
        key = self.keys[0]
        return ErasedSubject(
            subject=event.subject,
            in_folder=event.folder_id is not None,
            digest=_digest(key, event.subject, event.folder_id, event.subject_id),
            key_id=_key_id(key),
            until=event.occurred_at,
        )

    def changes(self, events: Iterable[ErasureRequested]) -> "Changes":
        """What stores erasures, to be confirmed."""
        changes: dict[bytes, bytes | None] = {}
        for event in events:
            key, value = _encoded(self.erased(event))
            changes[_ERASED_PREFIX + key] = value
            # Two erasures of the same subject and time are one to the state, and each has its confirmation.
            changes[_UNCONFIRMED_PREFIX + key + _short_digest(event.erasure_id.encode())] = event.erasure_id.encode()
        return changes


def stored_erasures(table: "Table", partition: int) -> Iterator[tuple[bytes, ErasedSubject]]:
    """All that a partition holds, with their keys. Raises like ``Table.keys``."""
    for key in table.keys(partition, _ERASED_PREFIX):
        if value := table.get(partition, key):
            yield key, msgspec.json.decode(value, type=ErasedSubject)


def unconfirmed_erasures(table: "Table", partition: int) -> dict[bytes, str]:
    """The ids of erasures that were not applied to every segment yet, by key. Raises like ``Table.keys``."""
    found = {key: table.get(partition, key) for key in table.keys(partition, _UNCONFIRMED_PREFIX)}
    return {key: value.decode() for key, value in found.items() if value is not None}


def superseded_erasures(table: "Table", partition: int) -> set[bytes]:
    """The keys of those that a later one of the same subject covers. Raises like ``Table.keys``."""
    latest: dict[ErasedSubject, tuple[datetime, bytes]] = {}
    superseded = set()
    for key, erased in stored_erasures(table, partition):
        subject = replace(erased, until=datetime.min)
        known = latest.get(subject)
        if known is None or known[0] < erased.until:
            latest[subject] = (erased.until, key)
            superseded |= {known[1]} if known else set()
        else:
            superseded.add(key)
    return superseded


class Erasures:
    """The erasures of one partition. Each covers events up to its own time, whenever they arrive."""

    def __init__(self, subjects: Iterable[ErasedSubject], rules: ErasureRules) -> None:
        """Raises like ``add``."""
        self._keys = {_key_id(key): key for key in rules.keys}
        self._future = rules.future
        # By subject; for each key, and whether in one folder only, the times by digest.
        self._by_subject: dict[str, dict[tuple[bytes, bool], dict[str, datetime]]] = {}
        self.add(subjects)

    def add(self, subjects: Iterable[ErasedSubject]) -> None:
        """Add further ones.

        Raises:
            ErasureKeyMissingError: one was made with a key that the settings do not have.
        """
        # A copy, which replaces the former at the end: ``apply`` may be at work in another thread.
        copy = {
            subject: {scope: dict(untils) for scope, untils in tables.items()}
            for subject, tables in self._by_subject.items()
        }
        for erased in subjects:
            if (key := self._keys.get(erased.key_id)) is None:
                # To go on would bring back what was erased.
                raise ErasureKeyMissingError(erased.key_id)
            untils = copy.setdefault(erased.subject, {}).setdefault((key, erased.in_folder), {})
            untils[erased.digest] = max(erased.until, untils.get(erased.digest, erased.until))
        self._by_subject = copy

    def __bool__(self) -> bool:
        return bool(self._by_subject)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Erasures) and self._by_subject == other._by_subject

    __hash__ = None  # type: ignore[assignment]

    def fingerprint(self) -> int:
        """Differs, in this process, where other events are erased."""
        untils = (item for tables in self._by_subject.values() for table in tables.values() for item in table.items())
        return hash(frozenset(untils))

    def apply(self, record: StateRecord) -> StateRecord:
        """What is left of a record: the same object if nothing is erased, else perhaps a tombstone.

        The clock of a log's agent may be ahead, so logs and feedback count as that much older than they say. Documents
        do not: one that is published again after its erasure is meant to be there.
        Feedback holds neither text nor a user, so it is erased only with its folder, or a log that is named itself.
        """
        remaining: StateEvent
        match record.event:
            case ChatLog() as log:
                at = log.occurred_at - self._future
                remaining = tombstone(log) if self._covers_log(log, at) else self._without_erased_texts(log, at)
            case Feedback() as feedback:
                at, folder_id = feedback.occurred_at - self._future, feedback.folder_id
                erased = self._covers("log", feedback.log_id, folder_id, at)
                remaining = tombstone(feedback) if erased or self._covers_folder(folder_id, at) else feedback
            case DocumentUpserted() as document:
                erased = self._covers_document(document.document_id, document.folder_id, document.occurred_at)
                remaining = tombstone(document) if erased else document
            case _:
                return record
        # The size stays: records that this one pushed out of the bound may have been dropped for good.
        return record if remaining is record.event else replace(record, event=remaining)

    def _covers_log(self, log: ChatLog, moment: datetime) -> bool:
        return (
            self._covers("user", log.user_id, log.folder_id, moment)
            or self._covers("log", log.log_id, log.folder_id, moment)
            or self._covers("conversation", log.conversation_id, log.folder_id, moment)
            or self._covers("agent", log.agent_id, log.folder_id, moment)
            or self._covers_folder(log.folder_id, moment)
        )

    def _covers_folder(self, folder_id: str, moment: datetime) -> bool:
        return self._covers("folder", folder_id, folder_id, moment)

    def _covers_document(self, document_id: str, folder_id: str, moment: datetime) -> bool:
        return self._covers("document", document_id, folder_id, moment) or self._covers_folder(folder_id, moment)

    def _covers(self, subject: str, subject_id: str | None, folder_id: str, moment: datetime) -> bool:
        if subject_id is None or (tables := self._by_subject.get(subject)) is None:
            return False
        for (key, in_folder), untils in tables.items():
            scopes = spellings(folder_id) if in_folder else (None,)
            for scope, spelling in product(scopes, spellings(subject_id)):
                until = untils.get(_digest(key, subject, scope, spelling))
                if until is not None and moment <= until:
                    return True
        return False

    def _without_erased_texts(self, log: ChatLog, moment: datetime) -> ChatLog:
        if not self._by_subject.keys() & {"document", "folder"}:
            return log

        def is_erased(passage: RetrievedPassage) -> bool:
            # A document is its folder and its id, also where a log of another folder carries its text.
            return passage.text is not None and self._covers_document(passage.document_id, passage.folder_id, moment)

        if not any(is_erased(passage) for passage in log.retrieved):
            return log
        retrieved = tuple(replace(passage, text=None) if is_erased(passage) else passage for passage in log.retrieved)
        return replace(log, retrieved=retrieved)


# The same agents, folders and documents come again and again.
@lru_cache(maxsize=1 << 14)
def _digest(key: bytes, subject: str, folder_id: str | None, subject_id: str) -> str:
    # The length tells where the folder ends and the id begins.
    scope = "" if folder_id is None else f"{len(folder_id)} {folder_id}"
    message = f"{subject} {scope}\0{subject_id}".encode("utf-8", "surrogatepass")
    # Its keyed mode is a MAC, a sixth of the time of HMAC-SHA-256: there is one for each id of each log.
    return hashlib.blake2b(message, key=key, digest_size=_DIGEST_BYTES).hexdigest()


def _key_id(key: bytes) -> str:
    return _short_digest(key).decode()


def _encoded(erased: ErasedSubject) -> tuple[bytes, bytes]:
    value = msgspec.json.encode(erased)
    return hashlib.sha256(value).hexdigest()[: 2 * _DIGEST_BYTES].encode(), value


def _short_digest(content: bytes) -> bytes:
    return hashlib.sha256(content).hexdigest()[:8].encode()
