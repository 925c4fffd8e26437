"""Everything that has to run for the loop to turn: Kafka and S3, the stream worker and the launcher."""

import shutil
import tempfile
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from demo.base_model import prepare_base_model
from demo.children import Child, log_tail
from foldtune.kafka import create_topics
from foldtune.settings import KafkaSettings, S3Settings, Settings, TrainerSettings, WorkerSettings, settings_environment
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers, exports

PARTITIONS = 4
BUCKET = "foldtune"


class PartEndedError(Exception):
    """A part of the demonstration ended by itself; with the end of its log."""

    def __init__(self, part: str, tail: str) -> None:
        super().__init__(f"the {part} ended by itself\n{tail}")


class Surroundings:
    """Servers and children in a temporary folder; with the ``with`` block, all of them end and the folder goes.

    The folder's logs are left where the block ended in an error.
    """

    settings: Settings

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="foldtune-demo-"))
        self.base_model = self.folder / "base-model"
        options = LocalOptions(
            data_dir=self.folder / "servers",
            kafka_port=None,
            s3_port=None,
            bucket=BUCKET,
            partitions=PARTITIONS,
        )
        self._servers = LocalServers(options)
        self._children: list[Child] = []

    @property
    def exports(self) -> list[str]:
        """The lines that point the commands of another terminal to the servers."""
        return exports(self._servers.environment)

    @property
    def environment(self) -> dict[str, str]:
        """The variables from which a process takes ``settings``."""
        return settings_environment(self.settings)

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._stop()
        if kind is None or not issubclass(kind, Exception):
            shutil.rmtree(self.folder)
            return
        for data in ("servers/kafka", "servers/s3", "worker", "jobs/cache"):
            shutil.rmtree(self.folder / data, ignore_errors=True)

    def check(self) -> None:
        """Raises:
        PartEndedError: one of the parts does not run any more.
        """
        for child in self._children:
            if not child.running:
                raise PartEndedError(child.name, log_tail(child.log))
        for server in (self._servers.kafka, self._servers.s3):
            if not server.running:
                raise PartEndedError(server.spec.name, server.log_tail())

    def tails(self) -> str:
        """The ends of the logs of the worker, the launcher and, where one was started, the training."""
        logs = [child.log for child in self._children] + sorted(self.folder.glob("jobs/launcher/*.log"))
        return "\n".join(f"── {log.name}\n{tail}" for log in logs if (tail := log_tail(log)))

    def _start(self) -> None:
        self._servers.start()
        self.settings = self._settings()
        create_topics(self.settings.kafka, tuple(Topic))
        for name in ("worker", "launcher"):
            self._children.append(Child(name, self.folder, self.environment))

    def _settings(self) -> Settings:
        servers = self._servers
        # Nothing from the user's environment and files: those may point to servers of another kind.
        return Settings.model_construct(
            kafka=KafkaSettings(bootstrap_servers=servers.bootstrap_servers, partitions=PARTITIONS),
            s3=S3Settings(
                bucket=BUCKET,
                endpoint_url=servers.s3_endpoint,
                access_key_id=servers.access_key,
                secret_access_key=SecretStr(servers.secret_key),
            ),
            worker=WorkerSettings(data_dir=self.folder / "worker"),
            trainer=TrainerSettings(
                base_model=prepare_base_model(self.base_model),
                model_folders=(self.base_model,),
                work_dir=self.folder / "jobs",
            ),
        )

    def _stop(self) -> None:
        # The launcher first: it interrupts its training and says so, for which it needs Kafka.
        for child in reversed(self._children):
            child.stop()
        self._servers.stop()
