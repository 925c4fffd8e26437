"""A simulated agent and its users: the chat logs and feedback that a retriever of middling quality leaves behind.

The agent retrieves with the base model and cites what it takes for right; its users like, dislike, correct, or mostly
say nothing. One label in five is wrong, as foldtune has to expect of logs: nobody has checked them.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import msgspec

from demo.corpus import Document, Pair
from foldtune.events import ChatLog, Feedback, Rating, RetrievedPassage, Verdict
from foldtune.settings import LabelWeights
from streams.snapshots.labels import label
from streams.training_sets import state_events
from streams.training_sets.fold import JudgedLog
from trainers.model.encoder import Embeddings
from trainers.model.tokens import Indices

AGENTS = ("library-helper", "editor-plugin")
USERS = 60
QUESTIONS_A_CONVERSATION = 4
SPAN = timedelta(days=60)


@dataclass(frozen=True)
class Habits:
    """How often what happens, each from 0 to 1."""

    # The right document was retrieved, and the agent cites another one.
    cites_wrong: float = 0.2
    # The right document was not retrieved, and the agent cites what it has.
    cites_anyway: float = 0.4
    liked_if_right: float = 0.25
    liked_if_wrong: float = 0.03
    disliked_if_right: float = 0.02
    disliked_if_wrong: float = 0.3
    # The user knows the right document and names it.
    corrected_if_wrong: float = 0.2
    corrected_if_none: float = 0.4
    # Of the verdicts: in an event of their own instead of the log, and of those: published before the log.
    apart: float = 0.5
    early: float = 0.3

    @classmethod
    def with_wrong_labels(cls, share: float) -> "Habits":
        """Habits that make about this share of the labels wrong, of an agent that finds the right document mostly."""
        return cls(cites_wrong=share, cites_anyway=min(1.0, 2 * share))


@dataclass(frozen=True)
class Split:
    """Questions that get into the logs, and questions that nobody will have asked."""

    asked: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


def split(pairs: Sequence[Pair], *, held_out: int, asked: int, seed: int) -> Split:
    """Draw ``held_out`` pairs for the evaluation and at most ``asked`` of the others for the logs.

    Raises:
        ValueError: nothing would be left to ask.
    """
    if held_out >= len(pairs):
        msg = f"cannot hold out {held_out} of {len(pairs)} questions"
        raise ValueError(msg)
    drawn = random.Random(seed).sample(pairs, len(pairs))  # noqa: S311 - a simulation, not a secret
    return Split(tuple(drawn[held_out : held_out + asked]), tuple(drawn[:held_out]))


class Simulator:
    """Plays the agent and its users over given documents; the same seed tells the same story."""

    def __init__(
        self, documents: Sequence[Document], *, until: datetime, seed: int, habits: Habits | None = None
    ) -> None:
        self._documents = documents
        self._rows = {document.document_id: row for row, document in enumerate(documents)}
        self._until = until
        self._habits = habits or Habits()
        self._random = random.Random(seed)  # noqa: S311 - a simulation, not a secret

    def events(self, pairs: Sequence[Pair], found: Indices, scores: Embeddings) -> list[ChatLog | Feedback]:
        """The events in the order of their publication.

        ``found`` and ``scores`` [pairs, k] are the rows and similarities of what was retrieved, best first.
        """
        events: list[ChatLog | Feedback] = []
        for number, pair in enumerate(pairs):
            retrieved = [self._documents[row] for row in found[number]]
            cited = self._citation(pair, retrieved)
            log = self._log(number, pair, retrieved, scores[number].tolist(), cited)
            events += self._with_verdict(log, self._verdict(pair, cited))
        return events

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def _citation(self, pair: Pair, retrieved: list[Document]) -> Document | None:
        others = [document for document in retrieved if document != pair.document]
        if pair.document in retrieved:
            return self._random.choice(others) if others and self._happens(self._habits.cites_wrong) else pair.document
        return others[0] if others and self._happens(self._habits.cites_anyway) else None

    def _log(
        self, number: int, pair: Pair, retrieved: list[Document], scores: list[float], cited: Document | None
    ) -> ChatLog:
        conversation = number // QUESTIONS_A_CONVERSATION
        # Conversations are spread over the span; their questions follow each other within minutes.
        started = self._until - SPAN * (((conversation * 0.618034) % 1) * 0.98 + 0.02)
        return ChatLog(
            log_id=f"log-{number:06}",
            occurred_at=started + timedelta(minutes=2 * (number % QUESTIONS_A_CONVERSATION)),
            agent_id=AGENTS[conversation % len(AGENTS)],
            conversation_id=f"conversation-{conversation:05}",
            user_id=f"user-{conversation % USERS:03}",
            question=pair.question,
            answer=f"See {cited.title}." if cited else "I could not find that in the library.",
            folder_id=(cited or retrieved[0]).folder_id,
            retrieved=tuple(
                RetrievedPassage(document_id=hit.document_id, folder_id=hit.folder_id, rank=rank, score=score)
                for rank, (hit, score) in enumerate(zip(retrieved, scores, strict=True), start=1)
            ),
            cited_document_ids=(cited.document_id,) if cited else (),
        )

    def _verdict(self, pair: Pair, cited: Document | None) -> Verdict | None:
        habits, right = self._habits, pair.document.document_id
        if cited is None:
            return Verdict(correct_document_id=right) if self._happens(habits.corrected_if_none) else None
        if cited == pair.document:
            liked, disliked, corrected = habits.liked_if_right, habits.disliked_if_right, 0.0
        else:
            liked, disliked, corrected = habits.liked_if_wrong, habits.disliked_if_wrong, habits.corrected_if_wrong
        if self._happens(corrected):
            return Verdict(rating=Rating.DISLIKE, correct_document_id=right)
        if self._happens(liked):
            return Verdict(rating=Rating.LIKE)
        return Verdict(rating=Rating.DISLIKE) if self._happens(disliked) else None

    def _with_verdict(self, log: ChatLog, verdict: Verdict | None) -> list[ChatLog | Feedback]:
        if verdict is None:
            return [log]
        if not self._happens(self._habits.apart):
            return [log.model_copy(update={"feedback": verdict})]
        feedback = Feedback(
            feedback_id=f"feedback-of-{log.log_id}",
            occurred_at=min(log.occurred_at + timedelta(minutes=self._random.randint(1, 600)), self._until),
            log_id=log.log_id,
            folder_id=log.folder_id,
            verdict=verdict,
        )
        return [feedback, log] if self._happens(self._habits.early) else [log, feedback]


def labels(events: Sequence[ChatLog | Feedback]) -> dict[str, str]:
    """Each question's positive by the rules of the training sets, where it has one."""
    verdicts = {
        event.log_id: msgspec.json.decode(event.encode(), type=state_events.Feedback).verdict
        for event in events
        if isinstance(event, Feedback)
    }
    logs = (
        msgspec.json.decode(event.encode(), type=state_events.ChatLog) for event in events if isinstance(event, ChatLog)
    )
    examples = (label(JudgedLog(log, verdicts.get(log.log_id, log.feedback)), LabelWeights()) for log in logs)
    return {example.log.question: example.positive.document_id for example in examples if example and example.positive}


def described(pairs: Sequence[Pair], events: Sequence[ChatLog | Feedback]) -> str:
    """How much the events teach, in a line."""
    truth = {pair.question: pair.document.document_id for pair in pairs}
    found = labels(events)
    wrong = sum(truth[question] != document_id for question, document_id in found.items())
    return f"{len(found):,} of them with a label, {wrong / max(1, len(found)):.0%} of the labels wrong"
