"""Questions, passages and examples of a snapshot without duplicates, and their split."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldtune.snapshot_schema import Label
from foldtune.spellings import nfc
from trainers.data.near_duplicates import WordSets, normalize_passage, normalize_question, words_and_signs
from trainers.errors import TooLittleDataError
from trainers.model.encoder import passage_text
from trainers.model.tokens import Indices

# Questions with at least this Jaccard similarity are one group, and a group is never on both sides of the split.
NEAR_DUPLICATE_JACCARD = 0.8
HELD_OUT_SHARE = 0.12
# A training changes a question's nDCG by about ±0.2: below 250 questions a mean gain of 0.02 is not significant, and
# above 2,000 more of them add no information.
HELD_OUT_FLOOR, HELD_OUT_CEILING = 250, 2_000
# The floors must not starve the training of a small set.
HELD_OUT_MAX_SHARE = 0.25
# The epoch and the weight interpolation are chosen on questions that are neither trained on nor reported on.
VALIDATION_SHARE = 0.1
VALIDATION_FLOOR, VALIDATION_CEILING = 20, 500
# With fewer questions to train on, none is spared for validation.
MIN_TRAINED = 100
# An agent can only cite what the model in service retrieved, so citations favour that model. With at least this many
# questions judged by people, only those are held out.
MIN_JUDGED = 200
_JUDGED_LABELS = {Label.CORRECTED, Label.LIKED}


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
    # Documents and impressions that were merged with another one of the same text.
    copies: dict[str, int] = field(default_factory=dict)

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
    a label by a person.
    """

    train: Indices
    validation: Indices
    held_out: Indices
    judged: bool


class _PassageIndex:
    """Distinct texts in order of insertion, and the text of each (folder, document).

    Texts that are equal after ``normalize_passage`` are one passage: as two, one would be a negative of a question to
    which the other is the positive.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._by_text: dict[str, int] = {}
        self._by_document: dict[tuple[str, str], int] = {}

    def add(self, folder_id: str, document_id: str, text: str) -> int:
        index = self._by_text.setdefault(normalize_passage(text), len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return self._by_document.setdefault((nfc(folder_id), nfc(document_id)), index)

    def find(self, passage: dict[str, Any]) -> int | None:
        """The passage's index; its text is the snapshot's document or, if that is missing, the log's copy."""
        index = self._by_document.get((nfc(passage["folder_id"]), nfc(passage["document_id"])))
        if index is None and passage["text"]:
            index = self.add(passage["folder_id"], passage["document_id"], passage["text"])
        return index


def build_dataset(examples: pa.Table, documents: pa.Table) -> Dataset:
    """Deduplicate a snapshot's tables.

    Repeated pairs of question and positive are one example, with the greatest strength. Examples without a positive, or
    whose positive has no text in a document or a log, are left out and counted.

    Raises:
        TooLittleDataError: fewer than two documents, or no example.
    """
    passages = _PassageIndex()
    for row in documents.to_pylist():
        passages.add(row["folder_id"], row["document_id"], passage_text(row["title"], row["text"]))
    document_count = len(passages.texts)
    copies = Counter(documents=documents.num_rows - document_count)
    questions: dict[str, tuple[int, str]] = {}
    pairs: dict[tuple[int, int], float] = {}
    judged: dict[tuple[int, int], bool] = defaultdict(bool)
    left_out: Counter[str] = Counter()
    folders: dict[int, dict[str, None]] = defaultdict(dict)
    impressions: dict[int, dict[int, None]] = defaultdict(dict)
    shown: list[tuple[int, list[dict[str, Any]]]] = []
    for row in examples.to_pylist():
        question, _ = questions.setdefault(normalize_question(row["question"]), (len(questions), row["question"]))
        folders[question][row["folder_id"]] = None
        shown.append((question, row["negatives"]))
        if row["positive"] is None:
            left_out["disliked_without_positive"] += 1
            continue
        positive = passages.find(row["positive"])
        if positive is None:
            left_out["positive_without_text"] += 1
            continue
        left_out["repeated_pair"] += (question, positive) in pairs
        pairs[question, positive] = max(row["strength"], pairs.get((question, positive), 0.0))
        judged[question, positive] |= row["label"] in _JUDGED_LABELS
    searchable = len(passages.texts)
    if document_count < 2 or not pairs:
        raise TooLittleDataError(
            f"{document_count} distinct documents, at least 2 are required; "
            f"{len(pairs)} examples with a known positive, at least 1 is required"
        )
    for question, negatives in shown:
        by_document = {
            (negative["folder_id"], negative["document_id"]): passages.find(negative) for negative in negatives
        }
        with_text = [passage for passage in by_document.values() if passage is not None]
        distinct = dict.fromkeys(with_text)
        copies["impressions"] += len(with_text) - len(distinct)
        impressions[question].update(distinct)
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
        copies=dict(copies),
    )


def split(dataset: Dataset, seed: int) -> Split:
    """Hold out whole groups of questions, ordered by a hash of ``seed`` and their text: the first ones for the report,
    the next ones for validation.

    The order does not depend on the rest of the snapshot: a held-out question stays held out in the next snapshot of
    about the same size, so a later model is not evaluated on what an earlier one was trained on.

    Raises:
        TooLittleDataError: fewer than two groups, or none small enough to be held out.
    """
    answered, judged = np.unique(dataset.question), np.unique(dataset.question[dataset.judged])
    judged_only = len(judged) >= MIN_JUDGED
    candidates = judged if judged_only else answered
    groups = len(np.unique(dataset.groups[candidates]))
    if groups < 2:
        raise TooLittleDataError(
            f"{len(answered)} distinct questions in {groups} group; at least two groups are required"
        )
    held_out = _draw_groups(dataset, candidates, _held_out_count(len(candidates)), seed)
    if not len(held_out):
        raise TooLittleDataError(
            f"{len(candidates)} distinct questions in {groups} groups of near-duplicates, each with more than "
            f"{HELD_OUT_MAX_SHARE:.0%} of them; none can be held out"
        )
    held_out_groups = dataset.groups[held_out]
    trainable = answered[~np.isin(dataset.groups[answered], held_out_groups)]
    validation = np.empty(0, dtype=np.int64)
    if len(trainable) >= MIN_TRAINED:
        count = min(VALIDATION_CEILING, max(VALIDATION_FLOOR, round(VALIDATION_SHARE * len(trainable))))
        remaining = candidates[~np.isin(dataset.groups[candidates], held_out_groups)]
        validation = _draw_groups(dataset, remaining, count, seed)
    if len(validation) < VALIDATION_FLOOR:
        validation = validation[:0]
    reserved_groups = dataset.groups[np.concatenate([held_out, validation])]
    train = np.flatnonzero(~np.isin(dataset.groups[dataset.question], reserved_groups))
    return Split(train=train, validation=validation, held_out=held_out, judged=judged_only)


def _draw_groups(dataset: Dataset, candidates: Indices, count: int, seed: int) -> Indices:
    """Whole groups of ``candidates``, until there are ``count`` questions."""
    members: dict[int, list[int]] = defaultdict(list)
    for question in candidates:
        members[int(dataset.groups[question])].append(int(question))
    drawn: list[int] = []
    for group in sorted(members.values(), key=lambda group: _hash(seed, (dataset.questions[index] for index in group))):
        if len(drawn) >= count:
            break
        # One huge group of near-duplicates would be most of the set.
        if len(drawn) + len(group) <= max(1, HELD_OUT_MAX_SHARE * len(candidates)):
            drawn += group
    return np.array(sorted(drawn), dtype=np.int64)


def _held_out_count(questions: int) -> int:
    count = max(HELD_OUT_FLOOR, min(HELD_OUT_CEILING, round(HELD_OUT_SHARE * questions)))
    return max(1, min(count, int(HELD_OUT_MAX_SHARE * questions)))


def _hash(seed: int, texts: Iterable[str]) -> bytes:
    return min(hashlib.sha256(f"{seed}\0{normalize_question(text)}".encode()).digest() for text in texts)
