"""Reports of launchers and trainers on a run; the coordinator turns them into the request's status."""

from foldtune.events import FineTuneStatus
from foldtune.kafka import Publisher
from foldtune.topics import Topic


def publish_report(publisher: Publisher, status: FineTuneStatus) -> None:
    """Publish a report and wait until the brokers have it; raises ``PublishError``."""
    publisher.publish(Topic.TRAINING_REPORTS, status, key=status.request_id, partition_by=status.model)
