"""Questions, passages and examples of a snapshot without duplicates, and their split."""

from collections import defaultdict
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from foldtune.pairs import HELD_OUT_SHARE, VALIDATION_FLOOR, pair, question_hash, validation_size
from foldtune.texts import words_and_signs
from trainers.data.near_duplicates import WordSets
from trainers.errors import TooLittleDataError
from trainers.model.tokens import Indices

# Questions with at least this Jaccard similarity are one group, and a group is never on both sides of the split.
NEAR_DUPLICATE_JACCARD = 0.8
# More of them add no information: a training changes a question's nDCG by about ±0.2.
HELD_OUT_CEILING = 2_000
# One huge group of near-duplicates would be most of the set.
VALIDATION_MAX_SHARE = 0.25
# An agent can only cite what the model in service retrieved, so citations favour that model. With at least this many
# held-out questions judged by people, only those are evaluated.
MIN_JUDGED = 50
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


def build_dataset(examples: pa.Table, documents: pa.Table) -> Dataset:
    """Deduplicate a snapshot's tables.

    What becomes an example, and what is left out, ``foldtune.pairs`` says.

    Raises:
        TooLittleDataError: fewer than two documents, or no example.
    """
    pairs = pair(examples.to_pylist(), documents.to_pylist())
    if pairs.documents < 2 or not pairs.strength:
        counts = ", ".join(f"{count} {reason}" for reason, count in sorted(pairs.left_out.items()) if count)
        raise TooLittleDataError(
            f"{pairs.documents} distinct documents, at least 2 are required; "
            f"{len(pairs.strength)} examples with a known positive, at least 1 is required; "
            f"left out: {counts or 'none'}"
        )
    texts, count = pairs.passages.texts, len(pairs.questions)
    pair_array = np.array(list(pairs.strength), dtype=np.int64)
    return Dataset(
        questions=tuple(text for _, text in pairs.questions.values()),
        groups=WordSets.of(list(pairs.questions), words_and_signs).near_duplicates(NEAR_DUPLICATE_JACCARD),
        passages=tuple(texts),
        documents=pairs.documents,
        searchable=pairs.searchable,
        question=pair_array[:, 0],
        positive=pair_array[:, 1],
        strength=np.array(list(pairs.strength.values()), dtype=np.float32),
        judged=np.array(list(pairs.judged.values()), dtype=np.bool_),
        impressions=tuple(tuple(pairs.impressions[index]) for index in range(count)),
        known_positives=np.sort(pair_array[:, 0] * len(texts) + pair_array[:, 1]),
        folders=tuple(tuple(pairs.folders[index]) for index in range(count)),
        left_out=dict(+pairs.left_out),
        copies={"documents": pairs.document_copies, "impressions": pairs.copied},
        changed_impressions=pairs.changed,
        logged=np.array([pairs.logged[found] for found in pairs.strength]),
    )


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
    if wanted := validation_size(len(trainable)):
        candidates = np.intersect1d(trainable, judged) if judged_only else trainable
        validation = _draw_validation(dataset, candidates, hashes, wanted)
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


def _draw_validation(dataset: Dataset, candidates: Indices, hashes: Floats, count: int) -> Indices:
    """Whole groups of ``candidates``, until there are enough questions; none if there are too few."""
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
