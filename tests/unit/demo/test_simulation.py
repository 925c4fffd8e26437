"""The simulated agent: plausible logs, the intended share of wrong labels, and no held-out question in the logs."""

from datetime import UTC, datetime

import numpy as np
import pytest

from demo.corpus import Document, Pair
from demo.retrieval import mean_metrics, ranks, search
from demo.simulation import PERIOD, Behaviour, Simulator, describe_labels, labels, split_questions
from foldtune.events import ChatLog, Feedback
from trainers.evaluation.metrics import CUTOFF

NOW = datetime(2026, 3, 1, tzinfo=UTC)
QUESTIONS = 1_200

DOCUMENTS = [Document(f"folder-{n % 5}", f"d{n}", f"title {n}", f"text {n}") for n in range(QUESTIONS)]
PAIRS = [Pair(f"question {n}", document) for n, document in enumerate(DOCUMENTS)]
RIGHT = np.arange(QUESTIONS)


def unit(matrix: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return scaled.astype(np.float32)


@pytest.fixture(scope="module")
def embeddings() -> tuple[np.ndarray, np.ndarray]:
    """Questions near their documents, about as near as with a middling encoder."""
    random = np.random.default_rng(0)
    documents = unit(random.normal(size=(QUESTIONS, 16)))
    return unit(documents + random.normal(scale=0.35, size=documents.shape)), documents


@pytest.fixture(scope="module")
def events(embeddings: tuple[np.ndarray, np.ndarray]) -> list[ChatLog | Feedback]:
    return Simulator(DOCUMENTS, until=NOW, seed=1).events(PAIRS, *search(*embeddings))


def logs_of(events: list[ChatLog | Feedback]) -> list[ChatLog]:
    return [event for event in events if isinstance(event, ChatLog)]


def test_one_label_in_five_is_wrong(events: list[ChatLog | Feedback]) -> None:
    truth = {pair.question: pair.document.document_id for pair in PAIRS}
    positives = labels(events)

    assert 0.7 < len(positives) / QUESTIONS < 0.95
    wrong = sum(truth[question] != document_id for question, document_id in positives.items())
    assert 0.15 < wrong / len(positives) < 0.25


def test_every_question_is_logged_once_in_the_folder_of_its_citation(events: list[ChatLog | Feedback]) -> None:
    logs = logs_of(events)
    folders = {document.document_id: document.folder_id for document in DOCUMENTS}

    assert [log.question for log in logs] == [pair.question for pair in PAIRS]
    assert all(log.folder_id == folders[(*log.cited_document_ids, log.retrieved[0].document_id)[0]] for log in logs)
    assert all([passage.rank for passage in log.retrieved] == list(range(1, CUTOFF + 1)) for log in logs)
    assert all(NOW - PERIOD <= log.occurred_at <= NOW for log in logs)
    assert len({log.user_id for log in logs}) == 60
    assert len({log.conversation_id for log in logs}) == QUESTIONS / 4


def test_feedback_is_in_the_log_after_it_or_before_it(events: list[ChatLog | Feedback]) -> None:
    positions = {event.log_id: position for position, event in enumerate(events) if isinstance(event, ChatLog)}
    feedback = [(position, event) for position, event in enumerate(events) if isinstance(event, Feedback)]

    assert any(log.feedback for log in logs_of(events))
    assert any(position < positions[event.log_id] for position, event in feedback)
    assert any(position > positions[event.log_id] for position, event in feedback)
    assert any(event.verdict.correct_document_id for _, event in feedback)
    assert {event.verdict.rating for _, event in feedback} >= {"like", "dislike"}


def test_the_same_seed_gives_the_same_events(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    retrieved = search(*embeddings)
    first, same, other = (Simulator(DOCUMENTS, until=NOW, seed=seed).events(PAIRS, *retrieved) for seed in (3, 3, 4))

    assert first == same
    assert first != other


def test_without_mistakes_every_label_is_right(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    perfect = Behaviour(cites_wrong=0, cites_anyway=0, disliked_if_right=0, corrected_if_none=1)
    events = Simulator(DOCUMENTS, until=NOW, seed=1, behaviour=perfect).events(PAIRS, *search(*embeddings))

    assert labels(events) == {pair.question: pair.document.document_id for pair in PAIRS}
    assert describe_labels(PAIRS, events) == "1,200 questions labelled, 0% of the labels wrong"


def test_a_held_out_question_is_never_asked() -> None:
    questions = split_questions(PAIRS, held_out=200, asked=900, seed=2)

    assert len(questions.held_out) == 200
    assert len(questions.asked) == 900
    assert not {pair.question for pair in questions.asked} & {pair.question for pair in questions.held_out}
    assert split_questions(PAIRS, held_out=200, asked=50, seed=2).held_out == questions.held_out
    with pytest.raises(ValueError, match="cannot hold out"):
        split_questions(PAIRS[:10], held_out=10, asked=1, seed=2)


def test_ranks_and_metrics_by_hand() -> None:
    documents = np.eye(12, dtype=np.float32)
    questions = np.zeros((3, 12), dtype=np.float32)
    questions[0, [0, 1]] = [1, 0.5]
    questions[1, [4, 5, 6, 7]] = [0.9, 0.8, 0.7, 0.6]
    questions[2] = np.arange(12, 0, -1) / 30
    found = ranks(questions, documents, np.array([0, 6, 11]))

    assert found.tolist() == [1, 3, 12]
    measured = mean_metrics(found)
    assert measured["recall@1"] == pytest.approx(1 / 3)
    assert measured["recall@10"] == pytest.approx(2 / 3)
    assert measured["mrr@10"] == pytest.approx((1 + 1 / 3) / 3)
    assert measured["ndcg@10"] == pytest.approx((1 + 1 / 2) / 3)
    assert search(questions, documents, 2)[0].tolist() == [[0, 1], [4, 5], [0, 1]]
