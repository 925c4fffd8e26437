"""From a snapshot's rows to questions, passages and examples, and which of them are held out."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldtune.snapshot_schema import Label
from trainers.data.words import WordSets, normalized, squeezed
from trainers.errors import TooLittleDataError
from trainers.model.encoder import passage_text

Indices = npt.NDArray[np.int64]

# Questions at least so similar (Jaccard of their words) are one group, and a group is never on both sides of the split.
NEAR_QUESTION = 0.8
HELD_OUT_SHARE = 0.12
# A question's nDCG changes by about ±0.2 in a training: under 250 questions a mean gain of 0.02 cannot be told from
# chance; over 2,000 more tell nothing new.
HELD_OUT_FLOOR, HELD_OUT_CEILING = 250, 2_000
# The floors must not starve the training of a small set.
HELD_OUT_MAX_SHARE = 0.25
# Which epoch and which mixture of weights is kept is chosen on questions that are neither trained on nor reported on.
VALIDATION_SHARE = 0.1
VALIDATION_FLOOR, VALIDATION_CEILING = 20, 500
# So few questions are all needed for training.
MIN_TRAINED = 100
# An agent can only cite what the model in service has found, so its citations favour that model: where people have
# judged so many questions, only those are held out.
MIN_JUDGED = 200
_JUDGED = {Label.CORRECTED, Label.LIKED}


@dataclass(frozen=True)
class Dataset:
    """Questions and passages are distinct texts, named by their index; an example is a row of the arrays.

    ``passages`` begins with the snapshot's ``documents`` documents; up to ``searchable`` follow positives whose text
    only a log carried, then the negatives of that kind. ``folders`` are those in which each question was asked.
    ``judged`` says whether a person stands behind an example, by a like or a correction. ``known_positives`` are all
    pairs (question, passage) that some log calls positive, as sorted codes (``codes``). ``copies`` counts the documents
    and the impressions that had the text of another one, and are one passage with it.
    """

    questions: tuple[str, ...]
    groups: Indices
    passages: tuple[str, ...]
    documents: int
    searchable: int
    question: Indices
    positive: Indices
    strength: npt.NDArray[np.float32]
    judged: npt.NDArray[np.bool_]
    impressions: tuple[tuple[int, ...], ...]
    known_positives: Indices
    folders: tuple[tuple[str, ...], ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    copies: dict[str, int] = field(default_factory=dict)

    def codes(self, questions: Indices, passages: Indices) -> Indices:
        """Pairs of indices as one number each."""
        return questions * len(self.passages) + passages

    def known_pairs(self) -> tuple[Indices, Indices]:
        """The questions and the passages of ``known_positives``, side by side."""
        return np.divmod(self.known_positives, len(self.passages))

    def is_known_positive(self, questions: Indices, passages: Indices) -> npt.NDArray[np.bool_]:
        """Whether some log calls each passage right for each question (arrays are broadcast); false for index -1."""
        codes = np.where(passages >= 0, self.codes(questions, passages), -1)
        where = np.searchsorted(self.known_positives, codes)
        found = self.known_positives[np.minimum(where, len(self.known_positives) - 1)] == codes
        return np.asarray(found & (codes >= 0))


@dataclass(frozen=True)
class Split:
    """``train`` are rows of the examples, ``validation`` and ``held_out`` are questions; no two share a group.

    ``validation`` is empty where there is too little to train on; ``judged``: the last two are of judged questions.
    """

    train: Indices
    validation: Indices
    held_out: Indices
    judged: bool


class _Passages:
    """Distinct texts in the order of their arrival, and which of them a (folder, document) has.

    Copies that differ in case, white space or form of their characters only are one text: as two, one would be a
    negative where the other is right.
    """

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._indices: dict[str, int] = {}
        self._named: dict[tuple[str, str], int] = {}

    def add(self, folder_id: str, document_id: str, text: str) -> int:
        index = self._indices.setdefault(squeezed(text), len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return self._named.setdefault((folder_id, document_id), index)

    def find(self, passage: dict[str, Any]) -> int | None:
        """The snapshot's document has the last word on its text; what is not in it may be carried by the log."""
        index = self._named.get((passage["folder_id"], passage["document_id"]))
        if index is None and passage["text"]:
            index = self.add(passage["folder_id"], passage["document_id"], passage["text"])
        return index


def build_dataset(examples: pa.Table, documents: pa.Table) -> Dataset:
    """The dataset of a snapshot's tables.

    Repeated pairs of question and positive are one example, with the greatest strength. A positive whose text is known
    neither from a document nor from a log leaves its example out, and is counted.

    Raises:
        TooLittleDataError: no document or no example is left.
    """
    passages = _Passages()
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
    carried: list[tuple[int, list[dict[str, Any]]]] = []
    for row in examples.to_pylist():
        question, _ = questions.setdefault(normalized(row["question"]), (len(questions), row["question"]))
        folders[question][row["folder_id"]] = None
        carried.append((question, row["negatives"]))
        if row["positive"] is None:
            left_out["disliked_without_positive"] += 1
            continue
        positive = passages.find(row["positive"])
        if positive is None:
            left_out["positive_without_text"] += 1
            continue
        left_out["repeated_pair"] += (question, positive) in pairs
        pairs[question, positive] = max(row["strength"], pairs.get((question, positive), 0.0))
        judged[question, positive] |= row["label"] in _JUDGED
    searchable = len(passages.texts)
    if document_count < 2 or not pairs:
        raise TooLittleDataError(
            f"{document_count} distinct documents (2 are needed), {len(pairs)} examples with a known positive (1 is)"
        )
    for question, negatives in carried:
        shown = {(one["folder_id"], one["document_id"]): passages.find(one) for one in negatives}
        found = {passage: None for passage in shown.values() if passage is not None}
        copies["impressions"] += sum(passage is not None for passage in shown.values()) - len(found)
        impressions[question].update(found)
    keys = np.array(list(pairs), dtype=np.int64)
    return Dataset(
        questions=tuple(text for _, text in questions.values()),
        groups=WordSets.of(list(questions)).near_duplicates(NEAR_QUESTION),
        passages=tuple(passages.texts),
        documents=document_count,
        searchable=searchable,
        question=keys[:, 0],
        positive=keys[:, 1],
        strength=np.array(list(pairs.values()), dtype=np.float32),
        judged=np.array(list(judged.values()), dtype=np.bool_),
        impressions=tuple(tuple(impressions[index]) for index in range(len(questions))),
        known_positives=np.sort(keys[:, 0] * len(passages.texts) + keys[:, 1]),
        folders=tuple(tuple(folders[index]) for index in range(len(questions))),
        left_out=dict(+left_out),
        copies=dict(copies),
    )


def split(dataset: Dataset, seed: int) -> Split:
    """Hold out whole groups of questions, in the order of a hash of ``seed`` and the group's text, the first ones to
    report on and the next ones for validation.

    The order does not depend on what else is in the snapshot: a question held out once stays held out in the next
    snapshot of about the same size, so a later model is not measured on what an earlier one was trained on.

    Raises:
        TooLittleDataError: there are fewer than two groups, or none that is small enough to be held out.
    """
    answered, judged = np.unique(dataset.question), np.unique(dataset.question[dataset.judged])
    enough = len(judged) >= MIN_JUDGED
    candidates = judged if enough else answered
    groups = len(np.unique(dataset.groups[candidates]))
    if groups < 2:
        raise TooLittleDataError(f"{len(answered)} distinct questions in {groups} group; two groups are needed")
    held = _drawn(dataset, candidates, _held_out_count(len(candidates)), seed)
    if not len(held):
        raise TooLittleDataError(
            f"{len(candidates)} distinct questions in {groups} groups of alike ones, each with more than "
            f"{HELD_OUT_MAX_SHARE:.0%} of them; nothing can be held out"
        )
    left = candidates[~np.isin(dataset.groups[candidates], dataset.groups[held])]
    trained = answered[~np.isin(dataset.groups[answered], dataset.groups[held])]
    validation = np.empty(0, dtype=np.int64)
    if len(trained) >= MIN_TRAINED:
        wanted = min(VALIDATION_CEILING, max(VALIDATION_FLOOR, round(VALIDATION_SHARE * len(trained))))
        validation = _drawn(dataset, left, wanted, seed)
    if len(validation) < VALIDATION_FLOOR:
        validation = validation[:0]
    kept_back = dataset.groups[np.concatenate([held, validation])]
    rows = np.flatnonzero(~np.isin(dataset.groups[dataset.question], kept_back))
    return Split(train=rows, validation=validation, held_out=held, judged=enough)


def _drawn(dataset: Dataset, candidates: Indices, wanted: int, seed: int) -> Indices:
    """Whole groups of ``candidates``, until there are ``wanted`` questions."""
    members: dict[int, list[int]] = defaultdict(list)
    for question in candidates:
        members[int(dataset.groups[question])].append(int(question))
    drawn: list[int] = []
    for group in sorted(members.values(), key=lambda group: _rank(seed, (dataset.questions[one] for one in group))):
        if len(drawn) >= wanted:
            break
        # One huge group of alike questions would fill the set with itself.
        if len(drawn) + len(group) <= max(1, HELD_OUT_MAX_SHARE * len(candidates)):
            drawn += group
    return np.array(sorted(drawn), dtype=np.int64)


def _held_out_count(questions: int) -> int:
    wanted = max(HELD_OUT_FLOOR, min(HELD_OUT_CEILING, round(HELD_OUT_SHARE * questions)))
    return max(1, min(wanted, int(HELD_OUT_MAX_SHARE * questions)))


def _rank(seed: int, texts: Iterable[str]) -> bytes:
    return min(hashlib.sha256(f"{seed}\0{normalized(text)}".encode()).digest() for text in texts)
