"""What an erasure would remove from the data topics, by the same rules as from the training sets."""

from collections import Counter, defaultdict
from dataclasses import dataclass, field

from foldtune.bounds import Rules, is_plausible, written_at
from foldtune.events import ErasureRequested
from foldtune.settings import Settings
from foldtune.topic_reader import read
from foldtune.topics import Topic
from streams.training_sets import state_events
from streams.training_sets.decoding import decode
from streams.training_sets.erasures import ErasureRules, Erasures
from streams.training_sets.state_events import ChatLog, DocumentUpserted, Feedback, StateEvent, StateRecord


@dataclass
class AffectedIds:
    """The ids in one folder that an erasure affects: each once, however many events carry it."""

    logs: set[str] = field(default_factory=set)
    # By log id.
    feedback: set[str] = field(default_factory=set)
    documents: set[str] = field(default_factory=set)
    # (log_id, document_id) of the passages whose text a log carries.
    passages: set[tuple[str, str]] = field(default_factory=set)

    def add(self, event: StateEvent, remaining: StateEvent) -> None:
        """Count what ``event`` loses, ``remaining`` being what the erasure leaves of it."""
        match event:
            case ChatLog():
                retrieved = remaining.retrieved if isinstance(remaining, ChatLog) else None
                if retrieved is None:
                    self.logs.add(event.log_id)
                for index, passage in enumerate(event.retrieved):
                    if passage.text is not None and (retrieved is None or retrieved[index].text is None):
                        self.passages.add((event.log_id, passage.document_id))
            case Feedback():
                self.feedback.add(event.log_id)
            case DocumentUpserted():
                self.documents.add(event.document_id)


def erasures_of(settings: Settings, *erasures: ErasureRequested) -> Erasures:
    """These erasures alone, to be applied as workers do."""
    rules = ErasureRules.of(settings.worker, settings.bounds)
    events = (
        state_events.ErasureRequested(
            erasure.erasure_id, erasure.occurred_at, erasure.subject, erasure.subject_id, erasure.folder_id
        )
        for erasure in erasures
    )
    return Erasures(map(rules.erased, events), rules)


def preview_erasure(erasure: ErasureRequested, settings: Settings) -> dict[str, AffectedIds]:
    """What the erasure affects in the data topics now, by folder; folders without any are left out.

    Raises:
        TopicMissingError: a data topic does not exist.
    """
    erasures = erasures_of(settings, erasure)
    by_folder: dict[str, AffectedIds] = defaultdict(AffectedIds)
    for topic in (Topic.CHAT_LOGS, Topic.DOCUMENTS, Topic.FEEDBACK):
        # As ``streams.partitions.positions`` does, from the beginning of the topic.
        newest: Counter[int] = Counter()
        for message in read(settings.kafka, topic):
            time = message.timestamp if is_plausible(message.timestamp) else newest[message.partition]
            newest[message.partition] = max(newest[message.partition], time)
            if (written := written_at(time)) is None:
                continue
            for record in decode(topic, message.offset, message.value, Rules(written, settings.bounds)):
                if not isinstance(record, StateRecord):
                    continue
                remaining = erasures.apply(record)
                if remaining is not record:
                    folder_id = state_events.folder_of(record.event)
                    by_folder[folder_id].add(record.event, remaining.event)
    return dict(by_folder)
