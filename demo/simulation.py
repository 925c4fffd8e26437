"""A simulated agent and its users: the chat logs and feedback that a retriever of middling quality produces.

The agent retrieves with the base model and cites one of the passages, or none; its users like, dislike, correct, or
mostly give no feedback. One label in five is wrong, as is to be expected of unchecked logs.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
QUESTIONS_PER_CONVERSATION = 4
PERIOD = timedelta(days=60)


@dataclass(frozen=True)
class Behaviour:
    """Probabilities of what the agent and its users do."""

    # The right document was retrieved, and the agent cites another one.
    cites_wrong: float = 0.2
    # The right document was not retrieved, and the agent cites one nevertheless.
    cites_anyway: float = 0.4
    liked_if_right: float = 0.25
    liked_if_wrong: float = 0.03
    disliked_if_right: float = 0.02
    disliked_if_wrong: float = 0.3
    # The user knows the right document and names it.
    corrected_if_wrong: float = 0.2
    corrected_if_none: float = 0.4
    # Feedback is an event of its own instead of a field of the log.
    separate_event: float = 0.5
    # A separate event is published before its log.
    before_log: float = 0.3

    @classmethod
    def with_wrong_labels(cls, share: float) -> "Behaviour":
        """About this share of wrong citations, for an agent that mostly retrieves the right document.

        Of 50 held-out questions with a judgement, or more, the gate goes by these alone, whose labels are right. Users
        who judge less than these leave it too few to tell the demo's gain from chance.
        """
        judging = cls(liked_if_right=0.5, corrected_if_wrong=0.5, corrected_if_none=0.7)
        return replace(judging, cites_wrong=share, cites_anyway=min(1.0, 2 * share))


@dataclass(frozen=True)
class QuestionSplit:
    """Questions that are asked, so get into the logs, and questions held out for evaluation."""

    asked: tuple[Pair, ...]
    held_out: tuple[Pair, ...]


def split_questions(pairs: Sequence[Pair], *, held_out: int, asked: int, seed: int) -> QuestionSplit:
    """Draw ``held_out`` pairs for the evaluation, and at most ``asked`` of the others for the logs.

    Raises:
        ValueError: no question is left for the logs.
    """
    if held_out >= len(pairs):
        msg = f"cannot hold out {held_out} of {len(pairs)} questions"
        raise ValueError(msg)
    shuffled = random.Random(seed).sample(pairs, len(pairs))  # noqa: S311 - a simulation, not a secret
    return QuestionSplit(tuple(shuffled[held_out : held_out + asked]), tuple(shuffled[:held_out]))


class Simulator:
    """Simulates the agent and its users over ``documents``; the same seed gives the same events."""

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        until: datetime,
        seed: int,
        behaviour: Behaviour | None = None,
        period: timedelta = PERIOD,
        first_log: int = 0,
    ) -> None:
        """The logs are of the ``period`` that ends at ``until``, and numbered from ``first_log`` on."""
        self._documents = documents
        self._until = until
        self._period = period
        self._first_log = first_log
        self._behaviour = behaviour or Behaviour()
        self._random = random.Random(seed)  # noqa: S311 - a simulation, not a secret

    def events(self, pairs: Sequence[Pair], retrieved: Indices, scores: Embeddings) -> list[ChatLog | Feedback]:
        """The events in the order in which they are published.

        ``retrieved`` and ``scores`` [pairs, k] are the rows and similarities of the retrieved documents, best first.
        """
        events: list[ChatLog | Feedback] = []
        for number, (pair, rows, similarities) in enumerate(
            zip(pairs, retrieved, scores, strict=True), self._first_log
        ):
            hits = [self._documents[row] for row in rows]
            cited = self._citation(pair, hits)
            log = self._log(number, pair, hits, similarities.tolist(), cited)
            events += self._with_feedback(log, self._verdict(pair, cited))
        return events

    def _happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def _citation(self, pair: Pair, hits: list[Document]) -> Document | None:
        others = [document for document in hits if document != pair.document]
        if pair.document in hits:
            wrong = others and self._happens(self._behaviour.cites_wrong)
            return self._random.choice(others) if wrong else pair.document
        return others[0] if others and self._happens(self._behaviour.cites_anyway) else None

    def _log(
        self, number: int, pair: Pair, hits: list[Document], scores: list[float], cited: Document | None
    ) -> ChatLog:
        conversation = number // QUESTIONS_PER_CONVERSATION
        # Conversations are spread over the period; their questions are two minutes apart, of a short period less.
        started = self._until - self._period * (((conversation * 0.618034) % 1) * 0.98 + 0.02)
        pause = min(timedelta(minutes=2), self._period * 0.02 / QUESTIONS_PER_CONVERSATION)
        return ChatLog(
            log_id=f"log-{number:06}",
            occurred_at=started + pause * (number % QUESTIONS_PER_CONVERSATION),
            agent_id=AGENTS[conversation % len(AGENTS)],
            conversation_id=f"conversation-{conversation:05}",
            user_id=f"user-{conversation % USERS:03}",
            question=pair.question,
            answer=f"See {cited.title}." if cited else "I could not find that in the library.",
            folder_id=(cited or hits[0]).folder_id,
            retrieved=tuple(
                RetrievedPassage(document_id=hit.document_id, folder_id=hit.folder_id, rank=rank, score=score)
                for rank, (hit, score) in enumerate(zip(hits, scores, strict=True), start=1)
            ),
            cited_document_ids=(cited.document_id,) if cited else (),
        )

    def _verdict(self, pair: Pair, cited: Document | None) -> Verdict | None:
        behaviour, right = self._behaviour, pair.document.document_id
        if cited is None:
            return Verdict(correct_document_id=right) if self._happens(behaviour.corrected_if_none) else None
        if cited == pair.document:
            liked, disliked, corrected = behaviour.liked_if_right, behaviour.disliked_if_right, 0.0
        else:
            liked, disliked = behaviour.liked_if_wrong, behaviour.disliked_if_wrong
            corrected = behaviour.corrected_if_wrong
        if self._happens(corrected):
            return Verdict(rating=Rating.DISLIKE, correct_document_id=right)
        if self._happens(liked):
            return Verdict(rating=Rating.LIKE)
        return Verdict(rating=Rating.DISLIKE) if self._happens(disliked) else None

    def _with_feedback(self, log: ChatLog, verdict: Verdict | None) -> list[ChatLog | Feedback]:
        if verdict is None:
            return [log]
        if not self._happens(self._behaviour.separate_event):
            return [log.model_copy(update={"feedback": verdict})]
        feedback = Feedback(
            feedback_id=f"feedback-of-{log.log_id}",
            occurred_at=min(log.occurred_at + timedelta(minutes=self._random.randint(1, 600)), self._until),
            log_id=log.log_id,
            folder_id=log.folder_id,
            verdict=verdict,
        )
        return [feedback, log] if self._happens(self._behaviour.before_log) else [log, feedback]


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


def describe_labels(pairs: Sequence[Pair], events: Sequence[ChatLog | Feedback]) -> str:
    """The number of labels and the share of wrong ones, in a line."""
    truth = {pair.question: pair.document.document_id for pair in pairs}
    positives = labels(events)
    wrong = sum(truth[question] != document_id for question, document_id in positives.items())
    return f"{len(positives):,} questions labelled, {wrong / max(1, len(positives)):.0%} of the labels wrong"
