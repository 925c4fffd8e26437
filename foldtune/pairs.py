"""From the rows of a snapshot to pairs of question and positive passage: the same for a training and for its preview.

Needs pyarrow and regex (``foldtune-server``).
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from foldtune.snapshot_schema import Label
from foldtune.spellings import nfc
from foldtune.texts import normalize_passage, normalize_question, passage_text, words, words_and_signs

# Questions whose hash is below this are never trained on, whatever the request and the rest of its snapshot: so a later
# model is compared with an earlier one on questions that neither has seen. To change it, or the hash, breaks that.
HELD_OUT_SHARE = 0.2
# The epoch and the weight interpolation are chosen on questions that are neither trained on nor reported on.
VALIDATION_SHARE = 0.1
VALIDATION_FLOOR, VALIDATION_CEILING = 20, 500
# With fewer questions to train on, none is spared for validation.
MIN_TRAINED = 100
# Impressions are pooled over all logs of a question; those that ranked highest come first.
MAX_IMPRESSIONS = 64
# A log's label is about the text that its agent saw. If that has less than this share of its words in common with the
# document of now, chunks were cut anew or a page was rewritten.
SAME_TEXT = 0.6
# A question to which every other log has another positive, such as "Tell me more.", means nothing without what was said
# before it. Some questions have several right passages, but not as many as logs, nor this many.
MIN_SCATTERED, MAX_POSITIVES = 5, 20
_JUDGED_LABELS = {Label.CORRECTED, Label.LIKED}


class TextChangedError(Exception):
    """A log's label is about another text than the document has now."""


class PassageIndex:
    """Distinct texts in order of insertion, and the text of each (folder, document).

    Texts that are equal after ``normalize_passage`` are one passage: as two, one would be a negative of a question to
    which the other is the positive.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._by_text: dict[str, int] = {}
        # Of the snapshot's documents, by folder and id, and by id; of those of which only logs have a text.
        self._documents: dict[tuple[str, str], int] = {}
        self._by_id: dict[str, set[int]] = defaultdict(set)
        self._carried: dict[tuple[str, str], int] = {}
        self._same: dict[tuple[int, str], bool] = {}

    def add_document(self, folder_id: str, document_id: str, text: str) -> None:
        """Add a document of the snapshot."""
        index = self._add(text)
        self._documents.setdefault((nfc(folder_id), nfc(document_id)), index)
        self._by_id[nfc(document_id)].add(index)

    def find(self, passage: dict[str, Any]) -> int | None:
        """The passage's index; its text is the snapshot's document or, if that is missing, the log's copy.

        Raises:
            TextChangedError: the log's copy is of another text than the document.
        """
        key, seen = (nfc(passage["folder_id"]), nfc(passage["document_id"])), passage["text"]
        index = self._documents.get(key)
        if index is None:
            if not seen:
                return self._carried.get(key)
            index = self._add(seen)
            self._carried.setdefault(key, index)
            return index
        if seen and not self._is_same(index, seen):
            raise TextChangedError
        return index

    def find_anywhere(self, document_id: str) -> int | None:
        """The index of a document that is in one folder only, or has the same text in all of them."""
        found = self._by_id.get(nfc(document_id), set())
        return next(iter(found)) if len(found) == 1 else None

    def _add(self, text: str) -> int:
        index = self._by_text.setdefault(normalize_passage(text), len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return index

    def _is_same(self, index: int, seen: str) -> bool:
        text = self.texts[index]
        if seen in text:
            return True
        if (index, seen) not in self._same:
            before, now = set(words(seen)), set(words(text))
            # Of the shorter one: an agent may log an excerpt, or what surrounds a chunk.
            shorter = min(len(before), len(now))
            # Without words only signs tell them apart.
            alike = normalize_passage(seen) == normalize_passage(text)
            self._same[index, seen] = len(before & now) >= SAME_TEXT * shorter if shorter else alike
        return self._same[index, seen]


@dataclass
class Pairs:
    """Distinct questions and passages by index, and which of them belong together."""

    # First the documents, up to ``documents``; then texts that only a log has, of positives up to ``searchable``.
    passages: PassageIndex
    documents: int = 0
    searchable: int = 0
    # By their normalized text: index, and text as first asked.
    questions: dict[str, tuple[int, str]] = field(default_factory=dict)
    # Of each pair: label weight, whether a person judged it, and when it was logged last, in seconds since 1970.
    strength: dict[tuple[int, int], float] = field(default_factory=dict)
    judged: dict[tuple[int, int], bool] = field(default_factory=lambda: defaultdict(bool))
    logged: dict[tuple[int, int], float] = field(default_factory=lambda: defaultdict(float))
    # Of each question: the folders in which it was asked, and its negatives in logs, in order.
    folders: dict[int, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    impressions: dict[int, dict[int, None]] = field(default_factory=lambda: defaultdict(dict))
    # Rows that made no pair of their own, by reason.
    left_out: Counter[str] = field(default_factory=Counter)
    # Documents and impressions of a text that another one had; impressions of a text that has changed.
    document_copies: int = 0
    copied: int = 0
    changed: int = 0


def pair(examples: Iterable[dict[str, Any]], documents: Iterable[dict[str, Any]]) -> Pairs:
    """Deduplicate rows of ``snapshot_schema.EXAMPLES`` and ``DOCUMENTS``.

    Repeated pairs are one, with the greatest strength. Left out and counted are examples without a positive, those
    whose positive has no text in a document or a log, or another one than the log, and those of questions that mean
    something else each time.
    """
    passages = PassageIndex()
    pairs, rows = Pairs(passages), 0
    for row in documents:
        rows += 1
        passages.add_document(row["folder_id"], row["document_id"], passage_text(row["title"], row["text"]))
    pairs.documents, pairs.document_copies = len(passages.texts), rows - len(passages.texts)
    # The logs of each pair, by question and positive.
    logs: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    shown: list[tuple[int, list[dict[str, Any]]]] = []
    for row in examples:
        question, _ = pairs.questions.setdefault(
            normalize_question(row["question"]), (len(pairs.questions), row["question"])
        )
        pairs.folders[question][row["folder_id"]] = None
        shown.append((question, row["negatives"]))
        positive = find_positive(row, passages)
        if isinstance(positive, str):
            pairs.left_out[positive] += 1
            continue
        key = question, positive
        pairs.left_out["repeated_pair"] += key in pairs.strength
        pairs.strength[key] = max(row["strength"], pairs.strength.get(key, 0.0))
        pairs.judged[key] |= row["label"] in _JUDGED_LABELS
        pairs.logged[key] = max(row["occurred_at"].timestamp(), pairs.logged[key])
        logs[question][positive].add(row["log_id"])
    for question in [question for question, of_question in logs.items() if _is_scattered(of_question)]:
        pairs.left_out["follow_up"] += len(logs[question])
        for positive in logs[question]:
            del pairs.strength[question, positive], pairs.judged[question, positive]
    pairs.searchable = len(passages.texts)
    pairs.impressions, pairs.copied, pairs.changed = _find_impressions(shown, passages)
    return pairs


def find_positive(row: dict[str, Any], passages: PassageIndex) -> int | str:
    """The positive of an example, or the reason why it is left out."""
    if row["positive"] is None:
        return "disliked_without_positive"
    try:
        found = passages.find(row["positive"])
    except TextChangedError:
        return "text_changed"
    if found is None and row["label"] == Label.CORRECTED:
        if nfc(row["positive"]["folder_id"]) == nfc(row["folder_id"]):
            # No other folder was named, and the document may be of one.
            found = passages.find_anywhere(row["positive"]["document_id"])
        return "correction_without_document" if found is None else found
    return "positive_without_text" if found is None else found


def _find_impressions(
    shown: list[tuple[int, list[dict[str, Any]]]], passages: PassageIndex
) -> tuple[dict[int, dict[int, None]], int, int]:
    """The impressions of each question, in order, of the negatives that were ``shown`` with it; and how many were of a
    text that another one had, and of a text that has changed.
    """
    impressions: dict[int, dict[int, None]] = defaultdict(dict)
    copied = changed = 0
    for question, negatives in shown:
        by_document: dict[tuple[str, str], int | None] = {}
        for negative in negatives:
            try:
                by_document[negative["folder_id"], negative["document_id"]] = passages.find(negative)
            except TextChangedError:
                changed += 1
        with_text = [passage for passage in by_document.values() if passage is not None]
        distinct = dict.fromkeys(with_text)
        copied += len(with_text) - len(distinct)
        impressions[question].update(distinct)
    return impressions, copied, changed


def _is_scattered(logs: dict[int, set[str]]) -> bool:
    """Whether a question has a positive of its own in every other log, or very many; ``logs`` are those of each."""
    distinct, most = len(logs), max(map(len, logs.values()))
    total = len(set().union(*logs.values()))
    if distinct < MIN_SCATTERED or 2 * most >= total:
        # One that was asked once may have a copy in each folder that it cited.
        return False
    return distinct > MAX_POSITIVES or 2 * distinct > total


def question_hash(question: str) -> float:
    """From 0 to 1, the same for questions of the same words and signs in another order."""
    normalized = normalize_question(question)
    key = " ".join(sorted(set(words_and_signs(normalized)))) or normalized
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64


def sampling_order(text: str) -> bytes:
    """The key by which samples are drawn: as good as random, and the same every time."""
    return hashlib.sha256(text.encode()).digest()


def trained_pairs(pairs: int) -> int:
    """About how many of so many pairs are trained on: a training also finds near-duplicates and follow-ups."""
    trainable = pairs - round(HELD_OUT_SHARE * pairs)
    return max(0, trainable - validation_size(trainable))


def validation_size(trainable: int) -> int:
    """How many of the questions that may be trained on are to be kept for validation."""
    if trainable < MIN_TRAINED:
        return 0
    return min(VALIDATION_CEILING, max(VALIDATION_FLOOR, round(VALIDATION_SHARE * trainable)))
