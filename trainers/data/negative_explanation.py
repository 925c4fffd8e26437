"""Why a question of a request has the hard negatives that it has."""

import difflib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from foldtune.events import TrainingJob
from foldtune.object_store import ObjectStore
from foldtune.settings import Settings
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.negatives import Candidate, NegativeSource
from trainers.data.snapshot import read_snapshot
from trainers.data.words import WordSets, normalized
from trainers.errors import UnknownQuestionError
from trainers.model.base_models import fetch_base_model
from trainers.model.encoder import Encoder


@dataclass(frozen=True)
class Explanation:
    """One example of the question; ``candidates`` in the order in which they are asked for."""

    question: str
    positive: str
    score: float
    candidates: list[tuple[str, Candidate]]


def explain(
    job: TrainingJob, settings: Settings, store: ObjectStore, work_dir: Path, *, question: str, depth: int
) -> list[Explanation]:
    """The candidates of ``question`` before the first epoch of ``job``, for each passage that is right for it.

    Raises:
        UnknownQuestionError: the request's snapshot has no such question; the most alike are named.
        ImpossibleJobError: snapshot or model are not what the job says.
    """
    snapshot = read_snapshot(store, job.snapshot_uri, job.snapshot_sha256)
    dataset = build_dataset(snapshot.examples, snapshot.documents)
    asked = _index(dataset, question)
    encoder = Encoder.load(fetch_base_model(job.base_model, settings.trainer, store, work_dir))
    # Only this question is embedded, and only its positives are asked for.
    dataset = replace(dataset, known_positives=dataset.known_positives[_of_question(dataset, asked)])
    passages = torch.from_numpy(encoder.encode(dataset.passages, "passage"))
    queries = torch.zeros((len(dataset.questions), encoder.dimension))
    queries[asked] = torch.from_numpy(encoder.encode([dataset.questions[asked]], "query"))[0]
    sets = WordSets.of(dataset.passages)
    rows = np.flatnonzero(dataset.question == asked)
    return [
        Explanation(
            question=dataset.questions[asked],
            positive=dataset.passages[dataset.positive[row]],
            score=float(passages[dataset.positive[row]] @ queries[asked]),
            candidates=[
                (dataset.passages[one.passage], one)
                for one in NegativeSource(dataset, rows[place:], sets, job.request.dataset).explain(
                    queries, passages, depth
                )
            ],
        )
        for place, row in enumerate(rows)
    ]


def _index(dataset: Dataset, question: str) -> int:
    known = [normalized(one) for one in dataset.questions]
    wanted = normalized(question)
    if wanted in known and (index := known.index(wanted)) in dataset.question:
        return index
    answered = {known[index]: dataset.questions[index] for index in np.unique(dataset.question)}
    alike = difflib.get_close_matches(wanted, answered, n=3, cutoff=0.3)
    raise UnknownQuestionError(question, *(answered[one] for one in alike))


def _of_question(dataset: Dataset, question: int) -> npt.NDArray[np.bool_]:
    return np.asarray(dataset.known_pairs()[0] == question)
