"""The simulated agent: plausible logs, labels that are wrong as often as intended, and nothing of what is held out."""

from datetime import UTC, datetime

import numpy as np
import pytest

from demo.corpus import Document, Pair
from demo.retrieval import mean_metrics, ranks, search
from demo.simulation import SPAN, Habits, Simulator, described, labels, split
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
    """Questions near their documents, as near as a middling encoder would put them."""
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
    found = labels(events)

    assert 0.7 < len(found) / QUESTIONS < 0.95
    assert 0.15 < sum(truth[question] != named for question, named in found.items()) / len(found) < 0.25


def test_every_question_is_logged_once_in_the_folder_of_what_it_cites(events: list[ChatLog | Feedback]) -> None:
    logs = logs_of(events)
    folders = {document.document_id: document.folder_id for document in DOCUMENTS}

    assert [log.question for log in logs] == [pair.question for pair in PAIRS]
    assert all(log.folder_id == folders[(*log.cited_document_ids, log.retrieved[0].document_id)[0]] for log in logs)
    assert all([passage.rank for passage in log.retrieved] == list(range(1, CUTOFF + 1)) for log in logs)
    assert all(NOW - SPAN <= log.occurred_at <= NOW for log in logs)
    assert len({log.user_id for log in logs}) == 60
    assert len({log.conversation_id for log in logs}) == QUESTIONS / 4


def test_verdicts_come_in_logs_after_logs_and_before_logs(events: list[ChatLog | Feedback]) -> None:
    places = {event.log_id: place for place, event in enumerate(events) if isinstance(event, ChatLog)}
    feedback = [(place, event) for place, event in enumerate(events) if isinstance(event, Feedback)]

    assert any(log.feedback for log in logs_of(events))
    assert any(place < places[event.log_id] for place, event in feedback)
    assert any(place > places[event.log_id] for place, event in feedback)
    assert any(event.verdict.correct_document_id for _, event in feedback)
    assert {event.verdict.rating for _, event in feedback} >= {"like", "dislike"}


def test_the_same_seed_tells_the_same_story(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    found = search(*embeddings)
    one, same, other = (Simulator(DOCUMENTS, until=NOW, seed=seed).events(PAIRS, *found) for seed in (3, 3, 4))

    assert one == same
    assert one != other


def test_without_bad_habits_every_label_is_right(embeddings: tuple[np.ndarray, np.ndarray]) -> None:
    perfect = Habits(cites_wrong=0, cites_anyway=0, disliked_if_right=0, corrected_if_none=1)
    events = Simulator(DOCUMENTS, until=NOW, seed=1, habits=perfect).events(PAIRS, *search(*embeddings))

    assert labels(events) == {pair.question: pair.document.document_id for pair in PAIRS}
    assert described(PAIRS, events) == "1,200 of them with a label, 0% of the labels wrong"


def test_what_is_held_out_is_never_asked() -> None:
    drawn = split(PAIRS, held_out=200, asked=900, seed=2)

    assert len(drawn.held_out) == 200
    assert len(drawn.asked) == 900
    assert not {pair.question for pair in drawn.asked} & {pair.question for pair in drawn.held_out}
    assert split(PAIRS, held_out=200, asked=50, seed=2).held_out == drawn.held_out
    with pytest.raises(ValueError, match="cannot hold out"):
        split(PAIRS[:10], held_out=10, asked=1, seed=2)


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
