"""Catastrophic forgetting: general questions, the same for every model, before and after a training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, Field, StringConstraints, TypeAdapter, ValidationError

from foldtune.errors import ObjectMissingError, ObjectStoreRefusedError
from foldtune.object_store import ObjectStore
from foldtune.reasons import explain
from trainers.data.search import nearest
from trainers.errors import SettingError
from trainers.evaluation.metrics import DEPTH, Evaluation, evaluation
from trainers.evaluation.non_inferiority import NonInferiority
from trainers.model.encoder import Encoder

# Among the passages of the general questions alone the search is too easy: documents of the snapshot are distractors.
MAX_DISTRACTORS = 500
# A base model that finds less of them has no knowledge of these languages that it could forget.
MIN_KNOWN = 0.7
MAX_FILE_BYTES = 16 * 1024**2
_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Pair(BaseModel):
    """A question and the passage that answers it."""

    question: _Text
    passage: _Text


_PAIRS = TypeAdapter(Annotated[tuple[Pair, ...], Field(min_length=2, max_length=5_000)])


class QuestionSet(NamedTuple):
    """General questions; they count for a base model that finds as much of them as ``min_known`` (nDCG@10)."""

    name: str
    pairs: tuple[Pair, ...]
    min_known: float = 0.0


def read_general_questions(own: str | None, store: ObjectStore) -> list[QuestionSet]:
    """The packaged sets, and the operator's: a JSON list of objects with ``question`` and ``passage``, in a file or in
    the bucket.

    Raises:
        SettingError: it is missing or malformed.
    """
    sets = [
        QuestionSet("general questions", _packaged("general.json")),
        QuestionSet("general questions in twelve languages", _packaged("general_multilingual.json"), MIN_KNOWN),
    ]
    if own is None:
        return sets
    try:
        pairs = _PAIRS.validate_json(_read(own, store))
        return [*sets, QuestionSet("the questions of trainer.general_questions", pairs)]
    except ValidationError as error:
        raise SettingError(f"trainer.general_questions, {own}: {'; '.join(explain(error))}") from error
    except (ObjectMissingError, ObjectStoreRefusedError, OSError, ValueError) as error:
        raise SettingError(f"trainer.general_questions, {own}: {error}") from error


def _packaged(name: str) -> tuple[Pair, ...]:
    return _PAIRS.validate_json((Path(__file__).parent / name).read_bytes())


def _read(own: str, store: ObjectStore) -> bytes:
    # One more byte tells that there are more.
    count = MAX_FILE_BYTES + 1
    if own.startswith("s3://"):
        content, _ = store.get_start(store.key(own), count)
    else:
        with Path(own).open("rb") as file:
            content = file.read(count)
    if len(content) == count:
        msg = f"more than {MAX_FILE_BYTES} bytes"
        raise ValueError(msg)
    return content


def measure_general(
    encoder: Encoder, sets: Sequence[QuestionSet], documents: torch.Tensor, seed: int
) -> list[Evaluation]:
    """Search the passages of a set, and some of the snapshot's documents, for each of its questions.

    ``documents`` ``[n, d]`` are the embeddings of the snapshot's documents by the same encoder.
    """
    size = min(MAX_DISTRACTORS, len(documents))
    drawn = np.sort(np.random.default_rng(seed).choice(len(documents), size=size, replace=False))
    distractors = documents[torch.from_numpy(drawn).to(documents.device)].cpu()
    return [_measure(encoder, questions.pairs, distractors) for questions in sets]


def _measure(encoder: Encoder, pairs: tuple[Pair, ...], distractors: torch.Tensor) -> Evaluation:
    # A passage may answer several questions.
    texts, passage = np.unique([pair.passage for pair in pairs], return_inverse=True)
    queries = torch.from_numpy(encoder.encode([pair.question for pair in pairs], "query"))
    passages = torch.cat([torch.from_numpy(encoder.encode(texts.tolist(), "passage")), distractors])
    hits = nearest(queries, passages, DEPTH) == passage[:, None]
    relevant, groups = np.ones(len(pairs), dtype=np.int64), np.arange(len(pairs))
    return evaluation(hits, relevant, groups, documents=len(passages))


def forgotten(
    sets: Sequence[QuestionSet], before: Sequence[Evaluation], after: Sequence[Evaluation], *, margin: float, seed: int
) -> list[NonInferiority]:
    """What became of the sets that count."""
    return [
        NonInferiority(questions.name, "general knowledge was lost, on", one, other, margin, seed)
        for questions, one, other in zip(sets, before, after, strict=True)
        if one.ndcg.mean() >= questions.min_known
    ]
