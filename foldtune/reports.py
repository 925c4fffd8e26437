"""Status reports of launchers and trainers, which the coordinator turns into the request's status."""

from foldtune.events import FineTuneStatus
from foldtune.kafka import Publisher
from foldtune.topics import Topic, request_key


def publish_report(publisher: Publisher, status: FineTuneStatus) -> None:
    """Publish a report and wait for its acknowledgement; raises ``PublishError``."""
    key = request_key(status.model, status.request_id)
    publisher.publish(Topic.TRAINING_REPORTS, status, key=key, partition_by=status.model)
