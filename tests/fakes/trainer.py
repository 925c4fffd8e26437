"""A training that publishes at once: the trainer's own reports and publication, of a model without weights."""

import sys
import tempfile
from functools import partial
from pathlib import Path

from foldtune.events import State, TrainingJob
from foldtune.kafka import Publisher
from foldtune.object_store import S3ObjectStore
from foldtune.settings import load_settings
from tests.support import model_ready
from trainers.publishing.model_publisher import publish_model
from trainers.publishing.reporting import KafkaEventSink, Reporter


def main(uri: str) -> None:
    settings = load_settings()
    store = S3ObjectStore(settings.s3)
    job = TrainingJob.model_validate_json(store.get(store.key(uri)))
    with KafkaEventSink(partial(Publisher, settings.kafka)) as sink, tempfile.TemporaryDirectory() as folder:
        reporter = Reporter(sink, job)
        reporter.publish_state(State.RUNNING)
        Path(folder, "model.txt").write_text("none")
        ready = model_ready(request_id=job.request.request_id, model=job.request.model, version=job.version)
        publish_model(Path(folder), ready, job, store, reporter)


if __name__ == "__main__":
    main(sys.argv[1])
