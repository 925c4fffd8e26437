"""The part of a preview that computes: what a request would select, and the first of its questions.

Runs in the export process, as ``export_child`` does.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from heapq import heappop, heappush
from itertools import chain, zip_longest
from typing import TypeVar

from foldtune.events import (
    MAX_PREVIEW_BYTES,
    MAX_PREVIEW_DOCUMENTS,
    MAX_PREVIEW_FOLDERS,
    MAX_PREVIEW_LOGS,
    MAX_PREVIEW_NEAR,
    MAX_PREVIEW_QUESTIONS,
    DocumentReference,
    FolderCount,
    PreviewDocument,
    PreviewLog,
    PreviewRequested,
    ShownPassage,
)
from foldtune.pairs import sampling_order
from foldtune.settings import LabelWeights, SetLimits
from foldtune.spellings import nfc
from foldtune.texts import normalize_question, passage_text, words
from streams.snapshots.labels import Example, label, without_deleted
from streams.snapshots.selection import Tally, select
from streams.training_sets.erasures import Erasures
from streams.training_sets.fold import FolderSet, JudgedLog, fold
from streams.training_sets.segments import unpack
from streams.training_sets.state_events import DocumentUpserted, StateRecord


@dataclass(frozen=True)
class Counted:
    """What a partition answers, without what only the caller knows."""

    labels: Counter[str]
    positives: int
    pairs: int
    documents: int
    folder_count: int
    folders: tuple[FolderCount, ...]
    tally: Tally
    logs: tuple[PreviewLog, ...]
    texts: tuple[PreviewDocument, ...]
    cut: int


Item = TypeVar("Item", PreviewLog, PreviewDocument)
# One folder's segments, as topic label and content, with its limits.
FolderContents = tuple[str, SetLimits, list[tuple[str, bytes]]]
_Logs = deque[tuple[JudgedLog, FolderSet]]
# Of questions without a positive.
_MAX_UNANSWERED = 100
_previews: dict[int, "_Preview"] = {}


def begin(number: int, request: PreviewRequested, erasures: Erasures, weights: LabelWeights, as_of: datetime) -> None:
    """Start a preview under a number that the caller draws: this process may have been started anew in between."""
    _previews[number] = _Preview(request, erasures, weights, as_of)


def add_segments(number: int, contents: list[tuple[str, bytes]], *, first: bool) -> None:
    """Decode segments of a folder that is finished later, given as topic label and content; raises like ``finish``."""
    preview = _preview_of(number)
    if first:
        preview.records = []
    preview.records += _records(contents)


def finish_folders(number: int, folders: list[FolderContents], *, continued: bool) -> None:
    """Count folders, the first one with the segments that were added if it is continued; raises like ``finish``."""
    preview = _preview_of(number)
    if not continued:
        preview.records = []
    for folder_id, limits, contents in folders:
        records, preview.records = [*preview.records, *_records(contents)], []
        preview.add(fold(folder_id, records, preview.erasures, limits, preview.as_of))


def finish(number: int) -> Counted:
    """The answer.

    Raises:
        OSError: the preview was begun in a process that has died.
    """
    return _preview_of(number).finish()


def discard(number: int) -> None:
    """Free the memory of a preview, finished or not."""
    _previews.pop(number, None)


def _records(contents: list[tuple[str, bytes]]) -> Iterator[StateRecord]:
    return (record for _, content in contents for record in unpack(content))


def _preview_of(number: int) -> "_Preview":
    try:
        return _previews[number]
    except KeyError:
        raise OSError("the export process was restarted during the preview") from None


class _Preview:
    def __init__(self, request: PreviewRequested, erasures: Erasures, weights: LabelWeights, as_of: datetime) -> None:
        self.erasures = erasures
        self.as_of = as_of
        self.records: list[StateRecord] = []
        self._request = request
        self._weights = weights
        self._wanted = {(document.folder_id, nfc(document.document_id)) for document in request.documents}
        self._tally = Tally()
        self._labels: Counter[str] = Counter()
        self._positives = self._documents = 0
        self._pairs: set[tuple[bytes, str, str]] = set()
        self._folders: list[FolderCount] = []
        self._drawn = _DrawnQuestions(request.questions)
        self._texts: list[PreviewDocument] = []
        self._near = [_NearDocuments(weights) for weights in request.near]

    def add(self, folder: FolderSet) -> None:
        if self._wanted:
            self._texts += self._find_texts(folder)
        elif self._near:
            for document in folder.documents:
                found = set(words(passage_text(document.title, document.text)))
                for near in self._near:
                    near.offer(document, found)
        else:
            self._count(folder)

    def _find_texts(self, folder: FolderSet) -> Iterator[PreviewDocument]:
        for document in folder.documents:
            document_id = nfc(document.document_id)
            if (folder.folder_id, document_id) in self._wanted or (None, document_id) in self._wanted:
                yield _preview_document(document)

    def _count(self, folder: FolderSet) -> None:
        positives = 0
        # Of what is drawn, without the logs and documents of its folder.
        of = FolderSet(folder.folder_id, (), (), folder.deleted)
        selected = select(folder, self._request.data, self._weights, self._tally, negatives=False)
        for judged, example in selected:
            self._labels[example.label.value] += 1
            order = sampling_order(normalize_question(example.log.question))
            if example.positive:
                positives += 1
                self._pairs.add((order[:8], example.positive.folder_id, example.positive.document_id))
            self._drawn.offer(order, judged, of, answered=example.positive is not None)
        self._positives += positives
        self._documents += len(folder.documents)
        self._folders.append(
            FolderCount(folder_id=folder.folder_id, examples=positives, documents=len(folder.documents))
        )

    def finish(self) -> Counted:
        logs, cut_logs = _within(self._drawn_logs(), MAX_PREVIEW_QUESTIONS * MAX_PREVIEW_LOGS)
        # The first document of each question before the second of any: not all may fit.
        near = filter(None, chain.from_iterable(zip_longest(*(each.documents() for each in self._near))))
        distinct = {(document.folder_id, document.document_id): document for document in near}
        texts, cut_texts = _within([*self._texts, *map(_preview_document, distinct.values())], MAX_PREVIEW_DOCUMENTS)
        named = sorted(self._folders, key=lambda count: (count.examples, count.folder_id))
        return Counted(
            labels=self._labels,
            positives=self._positives,
            pairs=len(self._pairs),
            documents=self._documents,
            folder_count=len(self._folders),
            folders=tuple(named[:MAX_PREVIEW_FOLDERS]) if self._request.data.folders else (),
            tally=self._tally,
            logs=logs,
            texts=texts,
            cut=cut_logs + cut_texts + self._drawn.cut,
        )

    def _drawn_logs(self) -> Iterator[PreviewLog]:
        # The first log of each question before the second of any: not all may fit.
        for logs in zip_longest(*self._drawn.logs()):
            for judged, folder in filter(None, logs):
                example = label(judged, self._weights)
                if example and (existing := without_deleted(example, folder)):
                    yield _preview_log(existing, folder)


class _DrawnQuestions:
    """The ``count`` questions with a positive that come first in the order in which they are drawn, with their logs.

    That order is the same in every partition, so the first questions of all together are among the first of each.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._answered: dict[bytes, _Logs] = {}
        # Of those that come before the last of these, and have no positive here: another partition may have one.
        self._unanswered: dict[bytes, _Logs] = {}
        self.cut = 0

    def offer(self, order: bytes, judged: JudgedLog, folder: FolderSet, *, answered: bool) -> None:
        """Take a log, and give up questions that are not among the first any more."""
        if not self._count or (len(self._answered) >= self._count and order > max(self._answered)):
            return
        if answered:
            self._answered.setdefault(order, self._unanswered.pop(order, deque(maxlen=MAX_PREVIEW_LOGS)))
        found = self._answered if order in self._answered else self._unanswered
        logs = found.setdefault(order, deque(maxlen=MAX_PREVIEW_LOGS))
        self.cut += len(logs) == MAX_PREVIEW_LOGS
        logs.append((judged, folder))
        if len(self._answered) > self._count:
            del self._answered[max(self._answered)]
            last = max(self._answered)
            self._unanswered = {order: logs for order, logs in self._unanswered.items() if order <= last}
        if len(self._unanswered) > _MAX_UNANSWERED:
            del self._unanswered[max(self._unanswered)]

    def logs(self) -> list[_Logs]:
        """Of each question, in order."""
        return [found[order] for found in (self._answered, self._unanswered) for order in sorted(found)]


class _NearDocuments:
    """The documents that have most words in common with a question, by the sum of these words' weights."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        self._weights = weights
        # Of two with the same sum the one that was offered first, whatever is in them.
        self._best: list[tuple[float, int, DocumentUpserted]] = []
        self._offered = 0

    def offer(self, document: DocumentUpserted, found: set[str]) -> None:
        """Take a document with these words."""
        self._offered -= 1
        score = sum(weight for word, weight in self._weights.items() if word in found)
        if score and (len(self._best) < MAX_PREVIEW_NEAR or score > self._best[0][0]):
            heappush(self._best, (score, self._offered, document))
            if len(self._best) > MAX_PREVIEW_NEAR:
                heappop(self._best)

    def documents(self) -> list[DocumentUpserted]:
        """Those with most in common first."""
        return [document for _, _, document in sorted(self._best, reverse=True)]


def _preview_document(document: DocumentUpserted) -> PreviewDocument:
    return PreviewDocument(
        document_id=document.document_id, folder_id=document.folder_id, title=document.title, text=document.text
    )


def _within(items: Iterable[Item], at_most: int) -> tuple[tuple[Item, ...], int]:
    """Those that fit into an answer, and how many do not."""
    budget, cut = MAX_PREVIEW_BYTES, 0
    kept: list[Item] = []
    for item in items:
        size = len(item.model_dump_json().encode())
        if size <= budget and len(kept) < at_most:
            budget -= size
            kept.append(item)
        else:
            cut += 1
    return tuple(kept), cut


def _preview_log(example: Example, folder: FolderSet) -> PreviewLog:
    log = example.log
    positive = example.positive
    return PreviewLog(
        log_id=log.log_id,
        occurred_at=log.occurred_at,
        folder_id=log.folder_id,
        agent_id=log.agent_id,
        question=log.question,
        label=example.label.value,
        strength=example.strength,
        positive=DocumentReference(document_id=positive.document_id, folder_id=positive.folder_id)
        if positive
        else None,
        positive_text=positive.text if positive else None,
        shown=tuple(_shown(example, folder)),
    )


def _shown(example: Example, folder: FolderSet) -> list[ShownPassage]:
    """What the log showed, by rank: the candidates for negatives as they are in the example, and why others are not."""
    retrieved = sorted(example.log.retrieved, key=lambda passage: passage.rank)
    ranks: dict[str, int] = {}
    for passage in retrieved:
        ranks.setdefault(nfc(passage.document_id), passage.rank)
    shown = [
        ShownPassage(
            document_id=negative.document_id,
            folder_id=negative.folder_id,
            rank=ranks.get(nfc(negative.document_id), len(retrieved) + 1),
            text=negative.text,
            use="candidate",
        )
        for negative in example.negatives
    ]
    candidates = {(negative.folder_id, nfc(negative.document_id)) for negative in example.negatives}
    for passage in retrieved:
        document_id = nfc(passage.document_id)
        if (passage.folder_id, document_id) in candidates:
            continue
        if nfc(passage.folder_id) == nfc(folder.folder_id) and document_id in folder.deleted:
            use = "deleted"
        elif example.positive is None:
            use = "unjudged"
        else:
            use = "positive" if document_id == nfc(example.positive.document_id) else "cited"
        shown.append(
            ShownPassage(
                document_id=passage.document_id,
                folder_id=passage.folder_id,
                rank=passage.rank,
                text=passage.text,
                use=use,
            )
        )
    return sorted(shown, key=lambda passage: passage.rank)
