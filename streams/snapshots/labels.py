"""Labels a judged log as a training example: the positive passage, how much to trust it, and the negatives."""

from dataclasses import dataclass, replace

from foldtune.settings import LabelWeights
from foldtune.snapshot_schema import Label
from foldtune.spellings import nfc
from streams.training_sets.fold import FolderSet, JudgedLog
from streams.training_sets.state_events import ChatLog


@dataclass(frozen=True, slots=True)
class Passage:
    """A passage by id, with its text if the log carried it."""

    folder_id: str
    document_id: str
    text: str | None


@dataclass(frozen=True, slots=True)
class Example:
    """One row of a snapshot. Without a positive, it only provides negatives."""

    log: ChatLog
    label: Label
    strength: float
    positive: Passage | None
    negatives: tuple[Passage, ...]


def label(judged: JudgedLog, weights: LabelWeights, *, negatives: bool = True) -> Example | None:
    """The training example of a log; ``None`` without a passage that is known to be relevant or irrelevant.

    Without ``negatives`` an example with a positive has none, in a fraction of the time.
    """
    log, verdict = judged.log, judged.verdict
    cited = _best_cited(log)
    rating = verdict.rating if verdict else None
    if verdict and verdict.correct_document_id:
        corrected = _passage(log, verdict.correct_document_id, verdict.correct_folder_id)
        liked = log.cited_document_ids if rating == "like" else ()
        return _positive_example(log, Label.CORRECTED, weights.corrected, corrected, liked if negatives else None)
    if rating == "dislike":
        wrong = tuple(_passage(log, document_id) for document_id in log.cited_document_ids)
        return Example(log, Label.DISLIKED, 0.0, None, wrong) if wrong else None
    spared = log.cited_document_ids if negatives else None
    if cited is not None and rating == "like":
        return _positive_example(log, Label.LIKED, weights.liked, cited, spared)
    if cited is not None and weights.cited is not None:
        return _positive_example(log, Label.CITED, weights.cited, cited, spared)
    if cited is None and weights.retrieved is not None:
        top = _confident_top(log, weights.retrieved_min_score)
        return _positive_example(log, Label.RETRIEVED, weights.retrieved, top, spared) if top is not None else None
    return None


def without_deleted(example: Example, folder: FolderSet) -> Example | None:
    """The example without the folder's deleted documents, even if the log carried their text; ``None`` if its positive
    is one of them, or nothing remains.

    A document of another folder may lie in another partition; what is known of it is in that one.
    """

    def is_deleted(passage: Passage) -> bool:
        return nfc(passage.folder_id) == nfc(folder.folder_id) and nfc(passage.document_id) in folder.deleted

    if not folder.deleted:
        return example
    negatives = tuple(negative for negative in example.negatives if not is_deleted(negative))
    if is_deleted(example.positive) if example.positive else not negatives:
        return None
    return replace(example, negatives=negatives)


def _positive_example(
    log: ChatLog, kind: Label, strength: float, positive: Passage, spared_ids: tuple[str, ...] | None
) -> Example:
    """``spared_ids`` are no negatives, beside the positive; with ``None`` nothing is."""
    if spared_ids is None:
        return Example(log, kind, strength, positive, ())
    # Other cited passages may be relevant too, so negatives exclude them, unless the user named another document.
    spared = set(map(nfc, (positive.document_id, *spared_ids)))
    negatives = tuple(
        _passage(log, passage.document_id)
        for passage in sorted(log.retrieved, key=lambda passage: passage.rank)
        if nfc(passage.document_id) not in spared
    )
    return Example(log, kind, strength, positive, negatives)


def _best_cited(log: ChatLog) -> Passage | None:
    """The highest-ranked cited passage, of the log's own folder if any; cited but not retrieved ranks last."""
    ranks = {passage.document_id: passage.rank for passage in log.retrieved}
    cited = [_passage(log, document_id) for document_id in log.cited_document_ids]
    candidates = [passage for passage in cited if nfc(passage.folder_id) == nfc(log.folder_id)] or cited
    return min(candidates, key=lambda passage: ranks.get(passage.document_id, 1 << 31), default=None)


def _confident_top(log: ChatLog, min_score: float) -> Passage | None:
    """The highest-ranked retrieved passage, if its score is at least ``min_score``."""
    top = min(log.retrieved, key=lambda passage: passage.rank, default=None)
    if top is None or (top.score or 0.0) < min_score:
        return None
    return _passage(log, top.document_id)


def _passage(log: ChatLog, document_id: str, folder_id: str | None = None) -> Passage:
    for passage in log.retrieved:
        in_folder = folder_id is None or nfc(passage.folder_id) == nfc(folder_id)
        if in_folder and nfc(passage.document_id) == nfc(document_id):
            return Passage(passage.folder_id, passage.document_id, passage.text)
    return Passage(folder_id or log.folder_id, document_id, None)
