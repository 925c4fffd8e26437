"""The running system of the demo: Kafka, S3, a stream worker and a launcher; the console, if it is kept."""

import shutil
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Self

from pydantic import SecretStr

from demo.base_model import prepare_base_model
from demo.supervised_process import SupervisedProcess
from foldtune.settings import (
    KafkaSettings,
    PolicySettings,
    S3Settings,
    Settings,
    TrainerSettings,
    WorkerSettings,
    settings_environment,
)
from foldtune.topic_admin import create_topics
from foldtune.topics import Topic
from infra.local.options import LocalOptions
from infra.local.ports import free_port
from infra.local.server import log_tail
from infra.local.stack import LocalServers, exports

PARTITIONS = 4
BUCKET = "foldtune"
LOG_TAIL_LINES = 40


class ProcessExitedError(Exception):
    """A server or process of the demo exited unexpectedly; the message ends with the tail of its log."""

    def __init__(self, name: str, tail: str) -> None:
        super().__init__(f"the {name} exited unexpectedly\n{tail}")


class RunningSystem:
    """Servers and processes in a temporary folder; leaving the ``with`` block stops them and deletes the folder.

    If the block raised, the folder's logs are kept.
    """

    settings: Settings

    def __init__(self, policy: PolicySettings | None = None) -> None:
        """Without a policy, only requests of people are trained."""
        self._policy = policy or PolicySettings()
        self.folder = Path(tempfile.mkdtemp(prefix="foldtune-demo-"))
        self.base_model = self.folder / "base-model"
        self.models = self.folder / "models"
        options = LocalOptions(
            data_dir=self.folder / "servers",
            kafka_port=None,
            s3_port=None,
            bucket=BUCKET,
            partitions=PARTITIONS,
        )
        self._servers = LocalServers(options)
        self._processes: list[SupervisedProcess] = []

    @property
    def exports(self) -> list[str]:
        """Shell lines that point the commands of another terminal to these servers."""
        return exports(self._servers.environment)

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

    def start_console(self) -> str:
        """Serve the API with the console; its address, once it is ready.

        Raises:
            ProcessExitedError: it, or something else, has exited.
        """
        port = free_port()
        options = ("--console", "--port", str(port))
        self._processes.append(SupervisedProcess("api", self.folder, settings_environment(self.settings), *options))
        address = f"http://127.0.0.1:{port}"
        while not _is_ready(address):
            self.check_running()
            time.sleep(0.2)
        return address

    def check_running(self) -> None:
        """Raises:
        ProcessExitedError: a server or process has exited.
        """
        for process in self._processes:
            if not process.running:
                raise ProcessExitedError(process.name, log_tail(process.log, LOG_TAIL_LINES))
        for server in (self._servers.kafka, self._servers.s3):
            if not server.running:
                raise ProcessExitedError(server.spec.name, server.log_tail())

    def log_tails(self) -> str:
        """The last log lines of the worker, the launcher and the training, if one was started."""
        logs = [process.log for process in self._processes] + sorted(self.folder.glob("jobs/launcher/*.log"))
        return "\n".join(f"── {log.name}\n{tail}" for log in logs if (tail := log_tail(log, LOG_TAIL_LINES)))

    def _start(self) -> None:
        self._servers.start()
        self.settings = self._settings()
        create_topics(self.settings.kafka, tuple(Topic))
        for name in ("worker", "launcher"):
            self._processes.append(SupervisedProcess(name, self.folder, settings_environment(self.settings)))

    def _settings(self) -> Settings:
        servers = self._servers
        # Built without the user's environment and files, which may point to other servers.
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
            policy=self._policy,
        )

    def _stop(self) -> None:
        # The launcher first: it interrupts its training and reports that, which needs Kafka.
        for process in reversed(self._processes):
            process.stop()
        self._servers.stop()


def _is_ready(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"{address}/ready", timeout=5):  # noqa: S310  this machine's own
            return True
    except OSError:
        return False
