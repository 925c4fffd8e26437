"""Questions, passages and examples of a snapshot without duplicates, and their split."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldtune.snapshot_schema import Label
from foldtune.spellings import nfc
from trainers.data.near_duplicates import WordSets, normalize_passage, normalize_question, words, words_and_signs
from trainers.errors import TooLittleDataError
from trainers.model.encoder import passage_text
from trainers.model.tokens import Indices

# Questions with at least this Jaccard similarity are one group, and a group is never on both sides of the split.
NEAR_DUPLICATE_JACCARD = 0.8
# Questions whose hash is below this are never trained on, whatever the request and the rest of its snapshot: so a later
# model is compared with an earlier one on questions that neither has seen. To change it, or the hash, breaks that.
HELD_OUT_SHARE = 0.2
# More of them add no information: a training changes a question's nDCG by about ±0.2.
HELD_OUT_CEILING = 2_000
# The epoch and the weight interpolation are chosen on questions that are neither trained on nor reported on.
VALIDATION_SHARE = 0.1
VALIDATION_FLOOR, VALIDATION_CEILING = 20, 500
# One huge group of near-duplicates would be most of the set.
VALIDATION_MAX_SHARE = 0.25
# With fewer questions to train on, none is spared for validation.
MIN_TRAINED = 100
# An agent can only cite what the model in service retrieved, so citations favour that model. With at least this many
# held-out questions judged by people, only those are evaluated.
MIN_JUDGED = 50
# A log's label is about the text that its agent saw. If that has less than this share of its words in common with the
# document of now, chunks were cut anew or a page was rewritten.
SAME_TEXT = 0.6
# A question to which every other log has another positive, such as "Tell me more.", means nothing without what was said
# before it. Some questions have several right passages, but not as many as logs, nor this many.
MIN_SCATTERED, MAX_POSITIVES = 5, 20
_JUDGED_LABELS = {Label.CORRECTED, Label.LIKED}
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Dataset:
    """Distinct questions and passages, referenced by index; the arrays ``[examples]`` have an example per row."""

    questions: tuple[str, ...]
    # Near-duplicate group of each question, [questions].
    groups: Indices
    # First the snapshot's ``documents``, then positives of which only a log has the text, up to ``searchable``; then
    # negatives of the same kind.
    passages: tuple[str, ...]
    documents: int
    searchable: int
    # Question and positive passage of each example, [examples].
    question: Indices
    positive: Indices
    # Label weight of each example, in (0, 1], [examples].
    strength: npt.NDArray[np.float32]
    # Whether a person liked or corrected the answer, [examples].
    judged: npt.NDArray[np.bool_]
    # Negatives in the logs of each question: passages shown and not cited, or cited in a disliked answer.
    impressions: tuple[tuple[int, ...], ...]
    # All pairs of question and passage that some log calls positive, as sorted ``question · len(passages) + passage``.
    known_positives: Indices
    # Folders in which each question was asked.
    folders: tuple[tuple[str, ...], ...] = ()
    # Rows that made no example of their own, by reason.
    left_out: dict[str, int] = field(default_factory=dict)
    # Impressions that are no negatives, since their text has changed.
    changed_impressions: int = 0
    # Documents and impressions that were merged with another one of the same text.
    copies: dict[str, int] = field(default_factory=dict)
    # When each example was logged last, in seconds since 1970, [examples].
    logged: npt.NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    def known_pairs(self) -> tuple[Indices, Indices]:
        """The questions and the passages of ``known_positives``, both ``[pairs]``."""
        return np.divmod(self.known_positives, len(self.passages))

    def is_known_positive(self, questions: Indices, passages: Indices) -> npt.NDArray[np.bool_]:
        """Whether some log calls the passage positive for the question (arrays are broadcast); false for passage -1."""
        pairs = np.where(passages >= 0, questions * len(self.passages) + passages, -1)
        positions = np.searchsorted(self.known_positives, pairs)
        known = self.known_positives[np.minimum(positions, len(self.known_positives) - 1)] == pairs
        return np.asarray(known & (pairs >= 0))


@dataclass(frozen=True)
class Split:
    """``train`` are example rows, ``validation`` and ``held_out`` are questions; no group is in two of them.

    ``validation`` is empty if there is too little to train on. ``judged``: validation and held-out questions all have
    a label by a person. ``kept_back`` questions are never trained on either, and not evaluated this time.
    """

    train: Indices
    validation: Indices
    held_out: Indices
    judged: bool
    kept_back: int = 0


class _TextChangedError(Exception):
    """A log's label is about another text than the document has now."""


class _PassageIndex:
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
            _TextChangedError: the log's copy is of another text than the document.
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
            raise _TextChangedError
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


def build_dataset(examples: pa.Table, documents: pa.Table) -> Dataset:
    """Deduplicate a snapshot's tables.

    Repeated pairs of question and positive are one example, with the greatest strength. Left out and counted are
    examples without a positive, those whose positive has no text in a document or a log, or another one than the log,
    and those of questions that mean something else each time.

    Raises:
        TooLittleDataError: fewer than two documents, or no example.
    """
    passages = _PassageIndex()
    for row in documents.to_pylist():
        passages.add_document(row["folder_id"], row["document_id"], passage_text(row["title"], row["text"]))
    document_count = len(passages.texts)
    questions: dict[str, tuple[int, str]] = {}
    pairs: dict[tuple[int, int], float] = {}
    judged: dict[tuple[int, int], bool] = defaultdict(bool)
    # The logs of each pair, by question and positive.
    logs: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    logged: dict[tuple[int, int], float] = defaultdict(float)
    left_out: Counter[str] = Counter()
    folders: dict[int, dict[str, None]] = defaultdict(dict)
    shown: list[tuple[int, list[dict[str, Any]]]] = []
    for row in examples.to_pylist():
        question, _ = questions.setdefault(normalize_question(row["question"]), (len(questions), row["question"]))
        folders[question][row["folder_id"]] = None
        shown.append((question, row["negatives"]))
        positive = _find_positive(row, passages)
        if isinstance(positive, str):
            left_out[positive] += 1
            continue
        left_out["repeated_pair"] += (question, positive) in pairs
        pairs[question, positive] = max(row["strength"], pairs.get((question, positive), 0.0))
        judged[question, positive] |= row["label"] in _JUDGED_LABELS
        logged[question, positive] = max(row["occurred_at"].timestamp(), logged[question, positive])
        logs[question][positive].add(row["log_id"])
    for question in [question for question, of_question in logs.items() if _is_scattered(of_question)]:
        left_out["follow_up"] += len(logs[question])
        for positive in logs[question]:
            del pairs[question, positive], judged[question, positive]
    searchable = len(passages.texts)
    if document_count < 2 or not pairs:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count)
        raise TooLittleDataError(
            f"{document_count} distinct documents, at least 2 are required; "
            f"{len(pairs)} examples with a known positive, at least 1 is required; left out: {counts or 'none'}"
        )
    impressions, copied, changed = _find_impressions(shown, passages)
    pair_array = np.array(list(pairs), dtype=np.int64)
    return Dataset(
        questions=tuple(text for _, text in questions.values()),
        groups=WordSets.of(list(questions), words_and_signs).near_duplicates(NEAR_DUPLICATE_JACCARD),
        passages=tuple(passages.texts),
        documents=document_count,
        searchable=searchable,
        question=pair_array[:, 0],
        positive=pair_array[:, 1],
        strength=np.array(list(pairs.values()), dtype=np.float32),
        judged=np.array(list(judged.values()), dtype=np.bool_),
        impressions=tuple(tuple(impressions[index]) for index in range(len(questions))),
        known_positives=np.sort(pair_array[:, 0] * len(passages.texts) + pair_array[:, 1]),
        folders=tuple(tuple(folders[index]) for index in range(len(questions))),
        left_out=dict(+left_out),
        copies={"documents": documents.num_rows - document_count, "impressions": copied},
        changed_impressions=changed,
        logged=np.array([logged[pair] for pair in pairs]),
    )


def _find_positive(row: dict[str, Any], passages: _PassageIndex) -> int | str:
    """The positive of an example, or the reason why it is left out."""
    if row["positive"] is None:
        return "disliked_without_positive"
    try:
        found = passages.find(row["positive"])
    except _TextChangedError:
        return "text_changed"
    if found is None and row["label"] == Label.CORRECTED:
        if nfc(row["positive"]["folder_id"]) == nfc(row["folder_id"]):
            # No other folder was named, and the document may be of one.
            found = passages.find_anywhere(row["positive"]["document_id"])
        return "correction_without_document" if found is None else found
    return "positive_without_text" if found is None else found


def _find_impressions(
    shown: list[tuple[int, list[dict[str, Any]]]], passages: _PassageIndex
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
            except _TextChangedError:
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


def split(dataset: Dataset) -> Split:
    """Hold out the questions whose hash is below ``HELD_OUT_SHARE``, and the ones with the next hashes for validation.

    A held-out question with a near-duplicate that is not held out tells nothing, since an earlier model may have been
    trained on that one; it is kept back. So are those without a judgement where enough of the others have one.

    Raises:
        TooLittleDataError: nothing is held out, or nothing is left to train on.
    """
    answered, judged = np.unique(dataset.question), np.unique(dataset.question[dataset.judged])
    hashes = np.array([question_hash(question) for question in dataset.questions])
    reserved = hashes < HELD_OUT_SHARE
    seen_groups = dataset.groups[~reserved]
    held_out = answered[reserved[answered] & ~np.isin(dataset.groups[answered], seen_groups)]
    trainable = answered[~reserved[answered]]
    if not len(held_out) or not len(trainable):
        raise TooLittleDataError(
            f"{len(answered)} distinct questions with a known positive: {len(trainable)} to train on, {len(held_out)} "
            f"held out; at least 1 of each is required. About {HELD_OUT_SHARE:.0%} are held out, always the same ones"
        )
    judged_held_out = np.intersect1d(held_out, judged)
    judged_only = len(judged_held_out) >= MIN_JUDGED
    held_out = judged_held_out if judged_only else held_out
    held_out = np.sort(held_out[np.argsort(hashes[held_out], kind="stable")[:HELD_OUT_CEILING]])
    validation = np.empty(0, dtype=np.int64)
    if len(trainable) >= MIN_TRAINED:
        candidates = np.intersect1d(trainable, judged) if judged_only else trainable
        validation = _draw_validation(dataset, candidates, hashes, len(trainable))
    rows = ~reserved[dataset.question] & ~np.isin(dataset.groups[dataset.question], dataset.groups[validation])
    kept_back = len(answered) - len(trainable) - len(held_out)
    return Split(np.flatnonzero(rows), validation, held_out, judged_only, kept_back)


def with_older_share(dataset: Dataset, parts: Split, since: float, share: float, seed: int) -> Split:
    """Train on all examples that were logged after ``since``, and on so many older ones that these are at most
    ``share``; on all if none is newer.
    """
    newer = dataset.logged[parts.train] > since
    count, older = int(newer.sum()), parts.train[~newer]
    if not count or share == 1:
        return parts
    kept = min(len(older), int(count * share / (1 - share)))
    drawn = np.random.default_rng(seed).choice(older, kept, replace=False)
    return replace(parts, train=np.sort(np.concatenate([parts.train[newer], drawn])))


def _draw_validation(dataset: Dataset, candidates: Indices, hashes: Floats, trainable: int) -> Indices:
    """Whole groups of ``candidates``, until there are enough questions; none if there are too few."""
    count = min(VALIDATION_CEILING, max(VALIDATION_FLOOR, round(VALIDATION_SHARE * trainable)))
    members: dict[int, list[int]] = defaultdict(list)
    for question in candidates[np.argsort(hashes[candidates], kind="stable")]:
        members[int(dataset.groups[question])].append(int(question))
    drawn: list[int] = []
    for group in members.values():
        if len(drawn) >= count:
            break
        if len(drawn) + len(group) <= VALIDATION_MAX_SHARE * len(candidates):
            drawn += group
    return np.array(sorted(drawn) if len(drawn) >= VALIDATION_FLOOR else [], dtype=np.int64)


def question_hash(question: str) -> float:
    """From 0 to 1, the same for questions of the same words and signs in another order."""
    normalized = normalize_question(question)
    key = " ".join(sorted(set(words_and_signs(normalized)))) or normalized
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8]) / 2**64
