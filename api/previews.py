"""What the answers to a preview say together: counts, steps, and the first questions with their negatives.

Which rows are an example, and what is a negative, is decided by the code of the training (``foldtune.pairs``).
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from typing import Any

from api.schemas import ExamplePreview, PassagePreview, QuestionPreview, ShownPreview, TrainingPreview
from foldtune.events import (
    MAX_PREVIEW_DOCUMENTS,
    MAX_PREVIEW_WORDS,
    DocumentReference,
    Preview,
    PreviewDocument,
    PreviewLog,
    ShownPassage,
)
from foldtune.excerpts import excerpt
from foldtune.knobs import DatasetKnobs, TrainingKnobs
from foldtune.pairs import (
    HELD_OUT_SHARE,
    MAX_IMPRESSIONS,
    Pairs,
    PassageIndex,
    TextChangedError,
    find_positive,
    pair,
    question_hash,
    sampling_order,
    trained_pairs,
    validation_size,
)
from foldtune.spellings import nfc
from foldtune.texts import jaccard, normalize_question, passage_text, words

# Of a text that is shown.
_EXCERPT = 1_000
# Longer ones are no words, and events have none.
_MAX_WORD = 256
_Key = tuple[str, str]


def expected_training(pairs: int, knobs: TrainingKnobs) -> TrainingPreview:
    """About how much of the pairs will be trained on."""
    held_out = round(HELD_OUT_SHARE * pairs)
    validation = validation_size(pairs - held_out)
    examples = trained_pairs(pairs)
    return TrainingPreview(
        pairs=pairs, held_out=held_out, validation=validation, examples=examples, steps=knobs.steps(examples)
    )


def drawn_questions(answers: Iterable[Preview], count: int) -> list[list[PreviewLog]]:
    """The logs of the first questions with a positive, of all partitions together, in the order of a snapshot."""
    by_question: dict[str, list[PreviewLog]] = defaultdict(list)
    for answer in sorted(answers, key=lambda answer: answer.partition):
        for log in sorted(answer.logs, key=lambda log: (log.folder_id, log.occurred_at, nfc(log.log_id))):
            # Workers name the folder of each; an answer that does not is none of theirs.
            if log.positive is None or log.positive.folder_id is not None:
                by_question[normalize_question(log.question)].append(log)
    answered = [question for question, logs in by_question.items() if any(log.positive for log in logs)]
    return [by_question[question] for question in sorted(answered, key=sampling_order)[:count]]


def documents_of(questions: Iterable[list[PreviewLog]]) -> list[DocumentReference]:
    """The documents that the questions were shown, or that answer them."""
    return list(dict.fromkeys(_references(log for logs in questions for log in logs)))[:MAX_PREVIEW_DOCUMENTS]


def corrections_elsewhere(
    questions: Iterable[list[PreviewLog]], documents: Iterable[PreviewDocument]
) -> list[DocumentReference]:
    """Documents that were named as the right ones, and are not in the folder of the log: perhaps in another one."""
    known = {(nfc(document.folder_id), nfc(document.document_id)) for document in documents}
    return [
        DocumentReference(document_id=log.positive.document_id)
        for log in (log for logs in questions for log in logs)
        if log.positive
        and log.positive_text is None
        and log.label == "corrected"
        and log.positive.folder_id is not None
        and (nfc(log.positive.folder_id), nfc(log.positive.document_id)) not in known
    ][:MAX_PREVIEW_DOCUMENTS]


def words_of(
    questions: Iterable[list[PreviewLog]], documents: Iterable[PreviewDocument]
) -> tuple[dict[str, float], ...]:
    """The words of each question; those weigh more that fewer of the documents have."""
    texts = [set(words(passage_text(document.title, document.text))) for document in documents]
    having = Counter(word for text in texts for word in text)
    by_question = [
        dict.fromkeys(word for word in words(logs[0].question) if len(word) <= _MAX_WORD) for logs in questions
    ]
    return tuple(
        {word: math.log(1 + (len(texts) + 1) / (having[word] + 0.5)) for word in list(found)[:MAX_PREVIEW_WORDS]}
        for found in by_question
    )


def to_mine(questions: Iterable[list[PreviewLog]], documents: Iterable[PreviewDocument], knobs: DatasetKnobs) -> bytes:
    """The questions and what to search for them, for ``trainers.preview``."""
    distinct = {(nfc(document.folder_id), nfc(document.document_id)): document for document in documents}
    asked = {
        "dataset": knobs.model_dump(mode="json"),
        "examples": [_row(log) for logs in questions for log in logs],
        "documents": [document.model_dump(mode="json") for document in distinct.values()],
    }
    return json.dumps(asked, default=datetime.isoformat).encode()


def explain(
    questions: Iterable[list[PreviewLog]], documents: Iterable[PreviewDocument], knobs: DatasetKnobs
) -> list[QuestionPreview]:
    """Each question with its examples, and what becomes of each passage that was shown with it."""
    by_id: dict[str, list[PreviewDocument]] = defaultdict(list)
    for document in documents:
        by_id[nfc(document.document_id)].append(document)
    return [_Question(logs, by_id, knobs).explained() for logs in questions]


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """The sum of counts, without zeros."""
    return dict(sorted((+sum(map(Counter, counts), Counter[str]())).items()))


class _Question:
    """The logs of one question, as a training that has all of them pairs them."""

    def __init__(
        self, logs: list[PreviewLog], documents: Mapping[str, list[PreviewDocument]], knobs: DatasetKnobs
    ) -> None:
        self._logs = logs
        self._knobs = knobs
        self._rows = [_row(log) for log in logs]
        ids = dict.fromkeys(nfc(reference.document_id) for reference in _references(logs))
        found = [document for document_id in ids for document in documents.get(document_id, ())]
        self._pairs: Pairs = pair(self._rows, [document.model_dump() for document in found])
        self._words: dict[int, list[str]] = {}

    def explained(self) -> QuestionPreview:
        pairs, passages = self._pairs, self._pairs.passages
        by_positive: dict[int, list[PreviewLog]] = defaultdict(list)
        for log, row in zip(self._logs, self._rows, strict=True):
            positive = find_positive(row, passages)
            if isinstance(positive, int) and (0, positive) in pairs.strength:
                by_positive[positive].append(log)
        question = self._logs[0].question
        return QuestionPreview(
            question=excerpt(question, _EXCERPT),
            held_out=question_hash(question) < HELD_OUT_SHARE,
            folders=sorted({log.folder_id for log in self._logs}),
            logs=len(self._logs),
            left_out=added([pairs.left_out]),
            examples=[self._example(positive, logs) for positive, logs in by_positive.items()],
        )

    def _example(self, positive: int, logs: list[PreviewLog]) -> ExamplePreview:
        negatives = [
            index for index in list(self._pairs.impressions[0])[:MAX_IMPRESSIONS] if not self._excluded(index, positive)
        ]
        taken = set(negatives[: self._knobs.hard_negatives])
        reference = next(log.positive for log in logs if log.positive)
        return ExamplePreview(
            positive=PassagePreview(
                folder_id=reference.folder_id,
                document_id=reference.document_id,
                text=excerpt(self._pairs.passages.texts[positive], _EXCERPT),
            ),
            labels=added([Counter(log.label for log in logs)]),
            shown=[self._shown(passage, index, reason, positive, taken) for passage, index, reason in self._passages()],
        )

    def _passages(self) -> Iterator[tuple[ShownPassage, int | None, str | None]]:
        """What was shown, each passage once, candidates first: with its index, and why it is no impression.

        A document is there twice if logs carried different texts of it.
        """
        shown = [passage for log in self._logs for passage in log.shown]
        once: set[tuple[str, str, int | None]] = set()
        seen: set[int] = set()
        for passage in sorted(shown, key=lambda passage: passage.use != "candidate"):
            reason = None if passage.use == "candidate" else passage.use
            try:
                index = _find(passage, self._pairs.passages)
            except TextChangedError:
                index, reason = None, reason or "text_changed"
            else:
                reason = reason or ("no_text" if index is None else None)
            key = (nfc(passage.folder_id), nfc(passage.document_id), index)
            if key not in once:
                once.add(key)
                yield passage, index, reason or ("same_passage_twice" if index in seen else None)
                if reason is None and index is not None:
                    seen.add(index)

    def _excluded(self, index: int, positive: int) -> str | None:
        """Why an impression is no negative of the positive, by the training's rules in their order."""
        if (0, index) in self._pairs.strength:
            return "known_positive"
        near = self._jaccard(index, positive) >= self._knobs.exclusion_threshold
        return "near_positive_by_words" if near else None

    def _shown(
        self, passage: ShownPassage, index: int | None, reason: str | None, positive: int, taken: set[int]
    ) -> ShownPreview:
        if reason is None and index is not None:
            reason = self._excluded(index, positive)
        text = passage.text if index is None else self._pairs.passages.texts[index]
        return ShownPreview(
            folder_id=passage.folder_id,
            document_id=passage.document_id,
            rank=passage.rank,
            text=None if text is None else excerpt(text, _EXCERPT),
            jaccard=None if index is None else self._jaccard(index, positive),
            reason=reason or "negative",
            taken=reason is None and index in taken,
        )

    def _jaccard(self, one: int, other: int) -> float:
        for index in (one, other):
            if index not in self._words:
                self._words[index] = words(self._pairs.passages.texts[index])
        return jaccard(self._words[one], self._words[other])


def _references(logs: Iterable[PreviewLog]) -> Iterator[DocumentReference]:
    for log in logs:
        if log.positive:
            yield log.positive
        for passage in log.shown:
            yield DocumentReference(document_id=passage.document_id, folder_id=passage.folder_id)


def _find(passage: ShownPassage, passages: PassageIndex) -> int | None:
    return passages.find({"folder_id": passage.folder_id, "document_id": passage.document_id, "text": passage.text})


def _row(log: PreviewLog) -> dict[str, Any]:
    """The row of ``snapshot_schema.EXAMPLES`` that an export would write, as far as ``pair`` looks."""
    positive = log.positive
    return {
        "log_id": log.log_id,
        "occurred_at": log.occurred_at,
        "folder_id": log.folder_id,
        "question": log.question,
        "positive": positive and {**positive.model_dump(), "text": log.positive_text},
        "label": log.label,
        "strength": log.strength,
        "negatives": [passage.model_dump() for passage in log.shown if passage.use == "candidate"],
    }
