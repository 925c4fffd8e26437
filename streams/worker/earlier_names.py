"""The state of installations with a ``kafka.topic_prefix`` that began under a release which did not name it after that.

Releases up to 0.1 took one ``worker.app_id`` and the root of the bucket whatever the prefix was, so that two
installations shared both. New ones do not; for those that have begun, this finds out what they have.
"""

from collections.abc import Iterator

import structlog
from kafka import TopicPartition

from foldtune import topics as topic_names
from foldtune.errors import InvalidSettingsError, ObjectStoreError
from foldtune.kafka import consumer
from foldtune.object_store import S3ObjectStore
from foldtune.settings import DEFAULT_APP_ID, KafkaSettings, Settings
from foldtune.topics import DATA_TOPICS, Topic
from streams.worker.app import changelogs

_log = structlog.get_logger()


def with_earlier_names(settings: Settings) -> Settings:
    """The settings, with the application id of an earlier release where this installation's state lies under it.

    Raises:
        InvalidSettingsError: that cannot be told, or objects lie at the root of the bucket, which the other processes
            must be told too; with what to set.
    """
    prefix = settings.kafka.topic_prefix
    by_default = "app_id" not in settings.worker.model_fields_set, "prefix" not in settings.s3.model_fields_set
    if not prefix or not any(by_default):
        return settings
    topics = _topics(settings.kafka)
    # Changelogs of its own prove that it began under this release.
    if by_default[0] and topics & set(changelogs(settings)):
        return settings
    if not _has_begun(settings.kafka, topics):
        return settings
    if by_default[1] and _lies_at_the_root(settings):
        raise InvalidSettingsError(
            "s3.prefix: an earlier release may have written the objects of this installation at the root of bucket "
            f"{settings.s3.bucket!r}: for all of its processes set FOLDTUNE_S3__PREFIX to nothing to go on there, or "
            f"to {prefix!r} to begin anew"
        )
    earlier = settings.model_copy(
        update={"worker": settings.worker.model_copy(update={"app_id": DEFAULT_APP_ID})},
    )
    if not by_default[0] or not topics & set(changelogs(earlier)):
        return settings
    if others := sorted(_others(topics, prefix)):
        raise InvalidSettingsError(
            f"worker.app_id: the changelogs of {DEFAULT_APP_ID!r} may be of this installation or of that with the "
            f"topic_prefix {others[0]!r}; set FOLDTUNE_WORKER__APP_ID to {DEFAULT_APP_ID!r} to go on with them, or to "
            f"{settings.worker.app_id!r} to begin anew from the topics"
        )
    _log.warning("state of an earlier release found, its app_id is kept", app_id=DEFAULT_APP_ID)
    return earlier


def _others(topics: set[str], prefix: str) -> Iterator[str]:
    """The prefixes of other installations that may have written the changelogs of ``DEFAULT_APP_ID``."""
    label = Topic.SNAPSHOT_COMMANDS.label
    for other in {topic.removesuffix(label) for topic in topics if topic.endswith(label)} - {prefix}:
        if not other or not topics & set(topic_names.changelogs(f"{other}{DEFAULT_APP_ID}")):
            yield other


def _topics(kafka: KafkaSettings) -> set[str]:
    with consumer(kafka) as client:
        return set(client.topics())


def _has_begun(kafka: KafkaSettings, topics: set[str]) -> bool:
    """Whether anything was ever written to the installation's inputs."""
    names = {topic.named(kafka.topic_prefix) for topic in (*DATA_TOPICS, Topic.FINE_TUNE_REQUESTS)} & topics
    with consumer(kafka) as client:
        partitions = [
            TopicPartition(name, number) for name in names for number in client.partitions_for_topic(name) or ()
        ]
        return any(client.end_offsets(partitions).values())


def _lies_at_the_root(settings: Settings) -> bool:
    here, root = (
        S3ObjectStore(settings.s3.model_copy(update={"prefix": prefix})) for prefix in (settings.s3.prefix, "")
    )
    try:
        return root.has_any("snapshots/") and not here.has_any("snapshots/")
    except ObjectStoreError as error:
        _log.warning("object store not checked", bucket=settings.s3.bucket, error=str(error))
        return False
