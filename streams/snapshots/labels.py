"""From a judged log to a training example: which passage was right, how sure that is, and what was wrong."""

from dataclasses import dataclass

from foldtune.settings import LabelWeights
from foldtune.snapshot_schema import Label
from streams.training_sets.fold import JudgedLog
from streams.training_sets.state_events import ChatLog


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage by name, with its text where the log carried it."""

    folder_id: str
    document_id: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a snapshot; without a positive, only its negatives say something."""

    log: ChatLog
    label: Label
    strength: float
    positive: Passage | None
    negatives: tuple[Passage, ...]


def label(judged: JudgedLog, strengths: LabelWeights) -> Example | None:
    """The example that a log makes, or ``None`` where it says nothing about any passage."""
    log, verdict = judged.log, judged.verdict
    cited = _cited(log)
    rating = verdict.rating if verdict else None
    if verdict and verdict.correct_document_id:
        corrected = _passage(log, verdict.correct_document_id)
        return _example(log, Label.CORRECTED, strengths.corrected, corrected, spare_cited=rating == "like")
    if rating == "dislike":
        wrong = tuple(_passage(log, document_id) for document_id in log.cited_document_ids)
        return Example(log, Label.DISLIKED, 0.0, None, wrong) if wrong else None
    if cited is not None and rating == "like":
        return _example(log, Label.LIKED, strengths.liked, cited)
    if cited is not None and strengths.cited is not None:
        return _example(log, Label.CITED, strengths.cited, cited)
    if cited is None and strengths.retrieved is not None and (top := _confident_top(log, strengths)) is not None:
        return _example(log, Label.RETRIEVED, strengths.retrieved, top)
    return None


def _example(log: ChatLog, kind: Label, strength: float, positive: Passage, *, spare_cited: bool = True) -> Example:
    # What was cited may answer too; only a user who names another document instead says that it does not.
    spared = set(log.cited_document_ids) if spare_cited else set()
    negatives = tuple(
        _passage(log, passage.document_id)
        for passage in sorted(log.retrieved, key=lambda passage: passage.rank)
        if passage.document_id not in spared and passage.document_id != positive.document_id
    )
    return Example(log, kind, strength, positive, negatives)


def _cited(log: ChatLog) -> Passage | None:
    """The cited passage of the log's own folder that ranked first; a citation that was not retrieved ranks last."""
    ranks = {passage.document_id: passage.rank for passage in log.retrieved}
    passages = [_passage(log, document_id) for document_id in log.cited_document_ids]
    own = [passage for passage in passages if passage.folder_id == log.folder_id] or passages
    return min(own, key=lambda passage: ranks.get(passage.document_id, 1 << 31), default=None)


def _confident_top(log: ChatLog, strengths: LabelWeights) -> Passage | None:
    top = min(log.retrieved, key=lambda passage: passage.rank, default=None)
    if top is None or (top.score or 0.0) < strengths.retrieved_min_score:
        return None
    return _passage(log, top.document_id)


def _passage(log: ChatLog, document_id: str) -> Passage:
    found = next((passage for passage in log.retrieved if passage.document_id == document_id), None)
    if found is None:
        return Passage(log.folder_id, document_id, None)
    return Passage(found.folder_id, found.document_id, found.text)
