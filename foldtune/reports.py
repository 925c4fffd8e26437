"""Status reports of launchers and trainers, which the coordinator turns into the request's status."""

from foldtune.events import FineTuneStatus
from foldtune.kafka import Publisher
from foldtune.topics import Topic


def publish_report(publisher: Publisher, status: FineTuneStatus) -> None:
    """Publish a report and wait for its acknowledgement; raises ``PublishError``."""
    publisher.publish(Topic.TRAINING_REPORTS, status, key=status.request_id, partition_by=status.model)
