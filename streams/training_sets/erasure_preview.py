"""What an erasure would take out of what the data topics still hold, by the same rules as the training sets."""

from collections import defaultdict
from dataclasses import dataclass, field

from foldtune.bounds import Rules, written_at
from foldtune.events import ErasureRequested
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.decoding import Record, decode
from streams.training_sets.erasures import Erasures
from streams.training_sets.state_events import ChatLog, DocumentUpserted, Feedback, Stored


@dataclass
class Covered:
    """What of one folder an erasure covers: each thing once, however many events tell of it."""

    logs: set[str] = field(default_factory=set)
    feedback: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    # (log_id, document_id) of the passages whose text a log carries.
    passages: set[tuple[str, str]] = field(default_factory=set)

    def add(self, event: Stored, left: Stored | None) -> None:
        """Note what was lost of ``event``, of which ``left`` is left."""
        match event:
            case ChatLog():
                kept = left.retrieved if isinstance(left, ChatLog) else None
                if kept is None:
                    self.logs.add(event.log_id)
                for place, passage in enumerate(event.retrieved):
                    if passage.text is not None and (kept is None or kept[place].text is None):
                        self.passages.add((event.log_id, passage.document_id))
            case Feedback():
                self.feedback.add(event.log_id)
            case DocumentUpserted():
                self.documents.add(event.document_id)


def preview_erasure(erasure: ErasureRequested, settings: Settings) -> dict[str, Covered]:
    """What the erasure covers in the data topics now, by folder; only folders with something to erase.

    Raises:
        TopicMissingError: a data topic is not there yet.
    """
    request = state_events.ErasureRequested(
        erasure.erasure_id, erasure.occurred_at, erasure.subject, erasure.subject_id
    )
    erasures = Erasures([request])
    found: dict[str, Covered] = defaultdict(Covered)
    for topic in (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK):
        for message in read(settings.kafka, topic):
            rules = Rules(written_at(message.timestamp), settings.bounds)
            for outcome in decode(topic, message.offset, message.value, rules):
                if not isinstance(outcome, Record):
                    continue
                left = erasures.applied(outcome)
                if left is not outcome:
                    found[state_events.folder_of(outcome.event)].add(outcome.event, left.event if left else None)
    return dict(found)
