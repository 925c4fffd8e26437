"""Ten trainings in a row on a log that grows by what each model's agent answers; the last line of output is JSON.

In each round new questions are asked. An agent answers them with the model in service: it searches the documents of the
question's folder, and cites the first one unread (a share ``unread`` of the time) or else the first that is right. Its
users like, dislike or correct some answers, with the probabilities of the demo; the right documents are those of the
data set's split ``train``, and are in no log. The logs of all rounds, as far as the window holds them, become labels,
data set, split, negatives, model and verdict by foldtune's own code. The model that is in service after a round is
measured on the true pairs of split ``dev``, each question in its folder.

Each of ``ARMS`` gets the same questions in the same order. The base model is the packaged MiniLM, of which the last two
layers train, and texts are truncated to 128 tokens throughout. The data set is a folder in the format of
``benchmarks/retrieval.py``.
"""

import itertools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
import torch
import typer

from benchmarks.foldtune_recipe import SilentListener, create_request
from benchmarks.quality import restart_with_allocator_options
from benchmarks.retrieval import read_lines
from demo.simulation import Behaviour
from foldtune.knobs import OLDER_SHARE
from foldtune.settings import LabelWeights, TrainerSettings
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from foldtune.testing import MemoryObjectStore
from foldtune.texts import normalize_passage, normalize_question, passage_text
from streams.snapshots.export_child import example_row
from streams.snapshots.labels import Example, label
from streams.training_sets.fold import JudgedLog
from streams.training_sets.state_events import ChatLog, RetrievedPassage, Verdict
from trainers.data.dataset import NEAR_DUPLICATE_JACCARD, Dataset, build_dataset, split, with_older_share
from trainers.data.near_duplicates import WordSets
from trainers.data.search import nearest
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.evaluation.forgetting import forgotten, measure_general, read_general_questions
from trainers.evaluation.gate import gate, mean_interval
from trainers.evaluation.metrics import CUTOFF, Evaluation, Floats, evaluate, ndcg
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices
from trainers.pipeline import fit

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
ROUND = timedelta(days=1)
# Retrieved for each question.
DEPTH = 10
LAYERS = 2
_SETTINGS = TrainerSettings()


@dataclass(frozen=True)
class Arm:
    """How the models follow each other, and what the logs are worth.

    ``unread``: share of the answers for which the agent cites the first document, whatever it is. ``gated``: only a
    model that the gate promotes goes into service, else every one.
    """

    start: Literal["base", "incumbent"] = "base"
    older_share: float = OLDER_SHARE
    unread: float = 0.4
    feedback: bool = True
    gated: bool = False


ARMS = {
    "incumbent": Arm("incumbent"),
    "base": Arm(),
    # Trained on its own citations, of whatever it finds first.
    "loop_incumbent": Arm("incumbent", unread=1.0, feedback=False),
    "loop_incumbent_feedback": Arm("incumbent", unread=1.0),
    "incumbent_all_older": Arm("incumbent", older_share=1.0),
    "loop_base": Arm(unread=1.0, feedback=False),
    "incumbent_gated": Arm("incumbent", gated=True),
    "loop_incumbent_gated": Arm("incumbent", unread=1.0, feedback=False, gated=True),
}


@dataclass(frozen=True)
class Question:
    """A question with the ids of its folder and of all documents that answer it."""

    question_id: str
    folder_id: str
    text: str
    right: frozenset[str]


@dataclass(frozen=True)
class Model:
    """Trained weights and what they give: embeddings of all questions that are asked and of all documents, nDCG@10 of
    each test question, and the general questions.
    """

    weights: list[torch.Tensor]
    queries: torch.Tensor
    passages: torch.Tensor
    test: Floats
    general: list[Evaluation]
    # End of the snapshot that it was trained on.
    snapshot_at: float = 0.0


@dataclass
class Curve:
    """Of one arm and seed, by round: nDCG@10 of each test question by the model in service (before the first round,
    too) and by the new model, the gate's outcome, the share of wrong labels, and nDCG@10 on the general questions.
    """

    served: list[Floats]
    trained: list[Floats] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)
    wrong_labels: list[float] = field(default_factory=list)
    general: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What all arms and seeds have in common."""

    data: Path
    folders: int
    rounds: int
    questions: int
    window: int
    epochs: int
    # Folder for temporary files.
    spill: str


@dataclass(frozen=True)
class Run:
    """An arm with one seed; ``test_groups`` are the near-duplicates among the test questions."""

    curve: Curve
    test_groups: Indices
    documents: int
    cpu_seconds: float


class World:
    """The documents, all questions that will be asked, the test questions, and the one encoder, whose frozen layers run
    once for each text.
    """

    def __init__(self, data: Path, folders: int, spill: Path) -> None:
        rows = read_lines(data / "questions.jsonl.gz")
        most = Counter(row["folder"] for row in rows if row["split"] == "train").most_common(folders)
        chosen = {folder for folder, _ in most}
        found: dict[str, list[Question]] = {"train": [], "dev": []}
        for row in rows:
            if row["folder"] in chosen:
                right = frozenset(row["document_ids"])
                found[row["split"]].append(Question(row["question_id"], row["folder"], row["question"], right))
        self.asked = found["train"]
        asked = {normalize_question(question.text) for question in self.asked}
        self.test = [question for question in found["dev"] if normalize_question(question.text) not in asked]
        documents = [row for row in read_lines(data / "documents.jsonl.gz") if row["folder"] in chosen]
        self.documents = pa.Table.from_pylist(
            [{"folder_id": row["folder"]} | {name: row[name] for name in DOCUMENTS.names[1:]} for row in documents],
            DOCUMENTS,
        )
        self.texts = self.dataset([self._placeholder(question, right=True) for question in self.asked])
        row_of = {normalize_passage(text): row for row, text in enumerate(self.texts.passages)}
        self.rows_of_folder: dict[str, dict[int, str]] = defaultdict(dict)
        for row in documents:
            text = normalize_passage(passage_text(row["title"], row["text"]))
            self.rows_of_folder[row["folder"]].setdefault(row_of[text], row["document_id"])
        self.query_of = {normalize_question(text): query for query, text in enumerate(self.texts.questions)}
        texts = [normalize_question(question.text) for question in self.test]
        self.test_groups = WordSets.of(texts).near_duplicates(NEAR_DUPLICATE_JACCARD)
        self.general = read_general_questions(None, MemoryObjectStore())
        self.encoder = Encoder.load(packaged_minilm_folder())
        self.trainable = TrainableEncoder(self.encoder, self.texts, LAYERS, spill)

    def dataset(self, rows: Sequence[dict[str, Any]]) -> Dataset:
        """The data set of a snapshot's examples. Its questions are all that will ever be asked, in the same order, so
        that the encoder knows them by the same indices; those that were not asked yet have no example.
        """
        every = [self._placeholder(question) for question in self.asked]
        return build_dataset(pa.Table.from_pylist([*every, *rows], EXAMPLES), self.documents)

    def measure(self, snapshot_at: float = 0.0) -> Model:
        """The model of the encoder's current weights."""
        queries, passages = self.trainable.embed_all()
        test = torch.from_numpy(self.encoder.encode([question.text for question in self.test], "query"))
        gains = []
        for question, vector in zip(self.test, test, strict=True):
            right = [
                document_id in question.right for document_id, _ in self.search(question, vector, passages, CUTOFF)
            ]
            gains.append(ndcg(np.array([right]), np.array([len(question.right)]))[0])
        general = measure_general(self.encoder, self.general, passages, 0)
        return Model(self.trainable.weights(), queries, passages, np.array(gains), general, snapshot_at)

    def search(
        self, question: Question, vector: torch.Tensor, passages: torch.Tensor, depth: int
    ) -> list[tuple[str, float]]:
        """The ids and scores of the nearest documents in the question's folder."""
        documents = self.rows_of_folder[question.folder_id]
        rows = np.array(list(documents))
        scores = passages[torch.from_numpy(rows)] @ vector
        (order,) = nearest(vector[None], passages[torch.from_numpy(rows)], min(depth, len(rows)))
        return [(documents[int(rows[index])], float(scores[index])) for index in order]

    @staticmethod
    def _placeholder(question: Question, *, right: bool = False) -> dict[str, Any]:
        passage = {"folder_id": question.folder_id, "document_id": min(question.right), "text": None}
        return {
            "log_id": question.question_id,
            "occurred_at": BEGIN,
            "folder_id": question.folder_id,
            "agent_id": "benchmark",
            "conversation_id": None,
            "question": question.text,
            "positive": passage if right else None,
            "label": "cited" if right else "disliked",
            "strength": 1.0,
            "negatives": [],
        }


def main(
    *,
    data: Annotated[Path, typer.Option(help="Folder with documents.jsonl.gz and questions.jsonl.gz.")],
    rounds: Annotated[int, typer.Option(help="Number of trainings in a row.")] = 10,
    questions: Annotated[int, typer.Option(help="Questions asked in each round.")] = 30,
    folders: Annotated[int, typer.Option(help="Number of folders, those with the most questions.")] = 6,
    window: Annotated[int, typer.Option(help="Logs that the training set keeps; the oldest go.")] = 200,
    epochs: Annotated[int, typer.Option(help="Epochs of each training.")] = 1,
    seeds: Annotated[int, typer.Option(help="Repetitions with other questions, users and batches.")] = 1,
    processes: Annotated[int, typer.Option(help="Number of processes, of one thread each.")] = 2,
    only: Annotated[str, typer.Option(help="Only arms whose names start with one of these, comma-separated.")] = "",
) -> None:
    """Run the benchmark; the last line of output is one JSON object."""
    began = time.perf_counter()
    chosen = tuple(filter(None, only.split(",")))
    arms = {name: arm for name, arm in ARMS.items() if not chosen or name.startswith(chosen)}
    runs: dict[str, list[Run]] = defaultdict(list)
    with (
        tempfile.TemporaryDirectory(prefix="foldtune-bench-") as spill,
        ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool,
    ):
        plan = Plan(data, folders, rounds, questions, window, epochs, spill)
        names = [name for _ in range(seeds) for name in arms]
        numbers = [seed for seed in range(seeds) for _ in arms]
        for name, run in zip(names, pool.map(partial(_run, plan), names, numbers), strict=True):
            runs[name].append(run)
    one = next(iter(runs.values()))[0]
    report = {
        "data": data.name,
        "cores": os.cpu_count(),
        "rounds": rounds,
        "questions_a_round": questions,
        "window": window,
        "epochs": epochs,
        "seeds": seeds,
        "documents": one.documents,
        "test_questions": len(one.test_groups),
        "arms": {name: _summary([run.curve for run in of_arm], one.test_groups) for name, of_arm in runs.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(sum(run.cpu_seconds for of_arm in runs.values() for run in of_arm), 1),
    }
    sys.stdout.write(json.dumps(report) + "\n")


@cache
def _world(data: Path, folders: int, spill: str) -> tuple[World, Model]:
    """Of this process, which keeps them until it ends."""
    torch.set_num_threads(1)
    world = World(data, folders, Path(tempfile.mkdtemp(dir=spill)))
    return world, world.measure()


def _run(plan: Plan, name: str, seed: int) -> Run:
    began = time.process_time()
    world, base = _world(plan.data, plan.folders, plan.spill)
    curve = _curve(world, base, ARMS[name], plan, seed)
    run = Run(curve, world.test_groups, len(world.texts.passages), time.process_time() - began)
    summary = {"arm": name, "seed": seed, "cpu_seconds": run.cpu_seconds} | _summary([curve], run.test_groups)
    typer.echo(json.dumps(summary), err=True)
    return run


def _curve(world: World, base: Model, arm: Arm, plan: Plan, seed: int) -> Curve:
    knobs = {"trainable_layers": LAYERS, "epochs": plan.epochs, "start": arm.start, "older_share": arm.older_share}
    request = create_request(seed, {"training": knobs, "dataset": {"hard_negatives": 1, "easy_negatives": 0}})
    asked = random.Random(seed).sample(world.asked, plan.rounds * plan.questions)  # noqa: S311  a simulation
    right = {question.question_id: question.right for question in asked}
    serving, curve, logs = base, Curve([base.test]), list[Example | None]()
    for number in range(plan.rounds):
        new = asked[number * plan.questions : (number + 1) * plan.questions]
        logs += [_ask(world, serving, question, arm, at=BEGIN + number * ROUND, seed=seed) for question in new]
        examples = [example for example in logs[-plan.window :] if example]
        labelled = [(example.log.log_id, example.positive.document_id) for example in examples if example.positive]
        wrong = sum(document_id not in right[log_id] for log_id, document_id in labelled)
        dataset = world.dataset(list(map(example_row, examples)))
        parts = split(dataset)
        from_incumbent = arm.start == "incumbent" and serving is not base
        if from_incumbent:
            parts = with_older_share(dataset, parts, serving.snapshot_at, arm.older_share, seed)
        start = serving if from_incumbent else base
        world.trainable.load_weights(start.weights)
        vectors = start.queries, start.passages
        fit(world.trainable, dataset, parts, request, start=vectors, listener=SilentListener())
        # The logs of the next round come after it.
        model = world.measure((BEGIN + (number + 0.5) * ROUND).timestamp())
        before, after = (
            evaluate(dataset, parts.held_out, vectors.queries[torch.from_numpy(parts.held_out)], vectors.passages)
            for vectors in (serving, model)
        )
        lost = forgotten(world.general, base.general, model.general, margin=_SETTINGS.max_loss, seed=seed)
        refusals = [refusal for loss in lost for refusal in loss.refusals]
        verdict = gate(before, after, seed, min_gain=_SETTINGS.min_gain, refusals=refusals)
        if verdict.promote or not arm.gated:
            serving = model
        curve.trained.append(model.test)
        curve.served.append(serving.test)
        curve.outcomes.append(str(verdict.outcome))
        curve.wrong_labels.append(wrong / len(labelled))
        curve.general.append(float(serving.general[0].ndcg.mean()))
    return curve


def _ask(world: World, model: Model, question: Question, arm: Arm, *, at: datetime, seed: int) -> Example | None:
    """The labelled log of a question that is answered with ``model``; each arm draws the same numbers for it."""
    drawn = random.Random(f"{seed} {question.question_id}")  # noqa: S311  a simulation
    unread, judged, anyway = drawn.random(), drawn.random(), drawn.random()
    right = drawn.choice(sorted(question.right))
    vector = model.queries[world.query_of[normalize_question(question.text)]]
    found = world.search(question, vector, model.passages, DEPTH)
    read = next((document_id for document_id, _ in found if document_id in question.right), None)
    cited = read or (found[0][0] if anyway < Behaviour.cites_anyway else None)
    if unread < arm.unread:
        cited = found[0][0]
    log = ChatLog(
        log_id=question.question_id,
        occurred_at=at,
        agent_id="benchmark",
        question=question.text,
        folder_id=question.folder_id,
        retrieved=tuple(
            RetrievedPassage(document_id=document_id, folder_id=question.folder_id, rank=rank, score=score)
            for rank, (document_id, score) in enumerate(found, 1)
        ),
        cited_document_ids=(cited,) if cited else (),
    )
    verdict = _judge(cited, question, judged, right) if arm.feedback else None
    return label(JudgedLog(log, verdict), LabelWeights())


def _judge(cited: str | None, question: Question, drawn: float, right: str) -> Verdict | None:
    """What a user says of an answer; ``drawn`` is from 0 to 1, and ``right`` the document that a correction names."""
    behaviour = Behaviour()
    if cited is None:
        return Verdict(correct_document_id=right) if drawn < behaviour.corrected_if_none else None
    if cited in question.right:
        corrected, liked, disliked = 0.0, behaviour.liked_if_right, behaviour.disliked_if_right
    else:
        corrected, liked = behaviour.corrected_if_wrong, behaviour.liked_if_wrong
        disliked = behaviour.disliked_if_wrong
    if drawn < corrected:
        return Verdict(rating="dislike", correct_document_id=right)
    if drawn < corrected + liked:
        return Verdict(rating="like")
    return Verdict(rating="dislike") if drawn < corrected + liked + disliked else None


def _summary(curves: list[Curve], groups: Indices) -> dict[str, Any]:
    """Means over the seeds, with 95 % intervals over the test questions of the gain over the base model."""
    served = [np.mean([curve.served[number] for curve in curves], axis=0) for number in range(len(curves[0].served))]
    trained = [np.mean([curve.trained[number] for curve in curves], axis=0) for number in range(len(curves[0].trained))]

    def gain(after: Floats, before: Floats) -> list[float]:
        interval = mean_interval(after - before, groups, 0)
        return [round(float(value), 4) for value in ((after - before).mean(), *interval)]

    falls = [gain(after, before) for before, after in itertools.pairwise(served)]
    best = max(served, key=lambda values: float(values.mean()))
    last = gain(served[-1], best)
    sure = [number for number, (_, _, high) in enumerate(falls, 1) if high < 0]
    return {
        "ndcg_at_10": [round(float(values.mean()), 4) for values in served],
        "gain_over_base": [gain(values, served[0]) for values in served[1:]],
        "last_minus_best": last,
        # Rounds, from 1, after which the model in service was surely worse than before it.
        "sure_falls": sure,
        "largest_fall": round(min(fall for fall, _, _ in falls), 4),
        "monotone_within_noise": not sure and last[2] >= 0,
        "new_models": [round(float(values.mean()), 4) for values in trained],
        "gate": [curve.outcomes for curve in curves],
        "wrong_labels": [round(float(share), 3) for share in np.mean([curve.wrong_labels for curve in curves], axis=0)],
        "general": [round(float(value), 4) for value in np.mean([curve.general for curve in curves], axis=0)],
    }


if __name__ == "__main__":
    restart_with_allocator_options("benchmarks.rounds")
    typer.run(main)
