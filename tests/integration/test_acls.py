"""Each part works with the rights that ``foldtune.acls`` gives its user, and has no others."""

import asyncio
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import uuid4

import pytest
import structlog
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ConfigResource,
    ConfigResourceType,
    NewTopic,
    ResourcePattern,
    ResourceType,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from kafka.errors import AuthorizationError, CoordinatorNotAvailableError, TopicAlreadyExistsError
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed
from typer.testing import CliRunner

from api.access import Caller
from api.audit import audit_entry
from api.publishing import Auditor, EventPublisher
from api.view.system import SystemView
from foldtune import FoldtuneClient
from foldtune.acls import RIGHTS, Part
from foldtune.cli import app
from foldtune.client.deployment import Deployer
from foldtune.errors import PublishError, TopicMissingError
from foldtune.events import ChatLog, DocumentUpserted, ErasureRequested, FineTuneStatus, PreviewRequested, State, now
from foldtune.kafka import Publisher, client_options
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings, load_settings
from foldtune.topic_admin import create_topics
from foldtune.topic_reader import read as read_topic
from foldtune.topics import Topic, changelogs
from launchers.job_consumer import JobConsumer
from launchers.local.launcher import LocalLauncher
from tests.secured import SecuredServers
from tests.support import ChildProcess, fine_tune_request, folder_history, settings_of

SECONDS = 90
TRAINER = (sys.executable, "-m", "tests.fakes.trainer")


class System:
    """A system on the secured broker, whose parts have users of their own."""

    def __init__(self, secured: SecuredServers, folder: Path) -> None:
        name = f"t{uuid4().hex[:8]}"
        self.folder, self._secured = folder, secured
        self._common = {
            "FOLDTUNE_KAFKA__TOPIC_PREFIX": f"{name}-",
            "FOLDTUNE_WORKER__APP_ID": name,
            "FOLDTUNE_WORKER__DATA_DIR": str(folder / "worker"),
            "FOLDTUNE_TRAINER__WORK_DIR": str(folder / "jobs"),
        }
        self.super_user = secured.servers.environment | self._common
        self.settings = {part: settings_of(self.variables(part)) for part in Part}

    def variables(self, part: Part) -> dict[str, str]:
        return self._secured.user(f"foldtune-{part}") | self._common

    def name(self, topic: Topic) -> str:
        return topic.named(self._common["FOLDTUNE_KAFKA__TOPIC_PREFIX"])

    def call(self, variables: dict[str, str], *arguments: str) -> str:
        """The output of a command."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in variables.items():
                patch.setenv(name, value)
            load_settings.cache_clear()
            result = CliRunner().invoke(app, arguments)
            load_settings.cache_clear()
            # A command configures the logs for its own stderr.
            structlog.reset_defaults()
        assert result.exit_code == 0, result.output
        return result.output


@pytest.fixture(scope="module")
def system(secured: SecuredServers, tmp_path_factory: pytest.TempPathFactory) -> System:
    """With users, ACLs and topics, as an operator makes them."""
    system = System(secured, tmp_path_factory.mktemp("acls"))
    secured.create_users([f"foldtune-{part}" for part in Part])
    system.call(system.super_user, "topics", "acls", "--create")
    system.call(system.variables(Part.OPERATOR), "topics", "create")
    return system


@contextmanager
def launcher(system: System) -> Iterator[None]:
    create_topics(system.settings[Part.LAUNCHER].kafka, RIGHTS[Part.LAUNCHER].checks)
    store = S3ObjectStore(system.settings[Part.LAUNCHER].s3)
    # On one machine a training has its launcher's settings; here it has the trainer's, as on AWS.
    local = LocalLauncher(system.settings[Part.TRAINER], store, command=TRAINER)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(JobConsumer(system.settings[Part.LAUNCHER], store, local).run, stop)
        try:
            yield
        finally:
            stop.set()
            running.result(SECONDS)


async def newest_status(settings: Settings) -> FineTuneStatus:
    """What the API's view has of the request, read and audited with the API's own rights."""
    view, publisher = SystemView(settings.kafka), EventPublisher(settings.kafka)
    try:
        await view.start()
        await publisher.start()
        await Auditor(publisher).write(audit_entry(Caller("ada"), "request.create", "model/r"))
        async with asyncio.timeout(SECONDS):
            # Topics that are read after the start.
            while not (view.audit.page(1, lambda _: True)[0] and view.find_place("model", "r", complete=False)):
                await asyncio.sleep(0.05)
        partitions = view.partitions(Topic.PREVIEW_REQUESTS)
        await publisher.broadcast(Topic.PREVIEW_REQUESTS, PreviewRequested(preview_id="p"), partitions)
        entry = view.requests.get("model", "r")
        assert entry
        return entry.status()
    finally:
        await publisher.close()
        await view.close()


def test_the_whole_loop_runs_with_the_rights_of_the_table(system: System) -> None:
    operator = system.variables(Part.OPERATOR)
    with FoldtuneClient(system.settings[Part.AGENT]) as agent, FoldtuneClient(system.settings[Part.INGEST]) as ingest:
        for _, event in folder_history("folder", 30):
            if isinstance(event, DocumentUpserted):
                ingest.document(event)
            elif isinstance(event, ChatLog):
                agent.log(event)
    worker = ChildProcess(["worker"], system.variables(Part.WORKER), system.folder / "worker.log")
    try:
        with launcher(system), FoldtuneClient(system.settings[Part.API]) as client:
            client.request_fine_tune(fine_tune_request("r"))
            ended = client.wait("r", timedelta(seconds=SECONDS))
            assert ended.state is State.COMPLETED, worker.log.read_text()
    finally:
        assert worker.stop() == 0
    status = asyncio.run(newest_status(system.settings[Part.API]))
    assert status.promoted

    store, failures = S3ObjectStore(system.settings[Part.DEPLOYER].s3), list[object]()
    deployer = Deployer(store, system.folder / "models", lambda *failure: failures.append(failure))
    with FoldtuneClient(system.settings[Part.DEPLOYER]) as client:
        deployer.offer(client.models()["model"])
        group = f"{system.settings[Part.DEPLOYER].kafka.topic_prefix}deployer-1"
        assert next(client.subscribe(group)).request_id == "r"
    (deployed,) = deployer.deploy_due()
    assert (deployed / "model.txt").read_text() == "none"
    assert not failures

    assert "completed" in system.call(operator, "status", "r")
    assert "model" in system.call(operator, "models")
    system.call(operator, "dead-letters", "list")
    assert "folder" in system.call(operator, "erase", "--log", "folder-0", "--dry-run")
    system.call(operator, "erase", "--log", "folder-0", "--yes")


def test_a_trainer_publishes_no_jobs_and_an_agent_no_requests_or_erasures(system: System) -> None:
    settings = system.settings
    with (
        Publisher(settings[Part.TRAINER].kafka) as trainer,
        pytest.raises(PublishError, match=r"training-jobs, .*TopicAuthorizationFailedError"),
    ):
        trainer.publish(Topic.TRAINING_JOBS, fine_tune_request("r"), key="k")
    erasure = ErasureRequested(erasure_id="e", occurred_at=now(), subject="user", subject_id="u")
    with FoldtuneClient(settings[Part.AGENT]) as agent:
        with pytest.raises(PublishError, match=r"fine-tune-requests, .*TopicAuthorizationFailedError"):
            agent.request_fine_tune(fine_tune_request("r"))
        with pytest.raises(PublishError, match=r"erasures, .*TopicAuthorizationFailedError"):
            agent.erase(erasure)


def test_who_has_no_right_to_a_topic_is_told_so(system: System) -> None:
    for call in (
        lambda kafka: create_topics(kafka, (Topic.CHAT_LOGS, Topic.DOCUMENTS)),
        lambda kafka: list(read_topic(kafka, Topic.FINE_TUNE_STATUS)),
    ):
        with pytest.raises(TopicMissingError, match=r"hidden from this user.* t\w+-(documents|fine-tune-status)$"):
            call(system.settings[Part.AGENT].kafka)


def test_each_part_is_denied_all_that_the_table_does_not_give(system: System) -> None:
    with ThreadPoolExecutor(len(Part)) as threads:
        found = dict(zip(Part, threads.map(lambda part: Attempts(system, part).made(), Part), strict=True))
    for part, attempts in found.items():
        for operation, targets in attempts.denied.items():
            print(f"{part}: denied {operation}: {', '.join(targets)}")  # noqa: T201
        rights = RIGHTS[part]
        writes_changelogs = ["changelogs"] * (part is Part.WORKER)
        managed = [topic.label for topic in rights.manages]
        given = {
            "read": [topic.label for topic in rights.reads] + writes_changelogs,
            "write": [topic.label for topic in rights.writes] + writes_changelogs,
            "create topic": managed + writes_changelogs,
            "alter configuration": managed + writes_changelogs,
            "delete topic": [],
            "delete records": list(DELETED[part]),
            "use group": [part.value] if part in GROUPS else [],
            "use transactional id": [],
            "change rights": [],
            "change users": [],
        }
        assert {operation: sorted(targets) for operation, targets in attempts.allowed.items()} == {
            operation: sorted(targets) for operation, targets in given.items() if targets
        }, part
        assert set(attempts.denied) >= {operation for operation, targets in given.items() if not targets}


# With the id of the application, which is also the prefix of the topics.
GROUPS = {
    Part.WORKER: "{}",
    Part.LAUNCHER: "{}-foldtune-launcher",
    Part.DEPLOYER: "{}-deployer",
}

# Kafka has one operation for records and for the topic.
DELETED = dict.fromkeys(Part, ()) | {Part.OPERATOR: (Topic.DEAD_LETTERS.label,)}


class Attempts:
    """Tries every operation as one part: which targets were allowed and which denied, by operation."""

    def __init__(self, system: System, part: Part) -> None:
        self._part, self._settings = part, system.settings[part]
        self.allowed: dict[str, list[str]] = defaultdict(list)
        self.denied: dict[str, list[str]] = defaultdict(list)

    def made(self) -> "Attempts":
        kafka, app_id = self._settings.kafka, self._settings.worker.app_id
        options = client_options(kafka)
        targets = {topic.label: topic.named(kafka.topic_prefix) for topic in Topic}
        targets["changelogs"] = changelogs(app_id)[0]
        with (
            closing(KafkaProducer(**options, enable_idempotence=False)) as producer,
            closing(KafkaConsumer(**options, enable_auto_commit=False)) as consumer,
            closing(KafkaAdminClient(**options)) as admin,
        ):
            for label, name in targets.items():
                self._try("write", label, partial(write, producer, name))
                self._try("read", label, partial(read, consumer, name))
                self._try("create topic", label, partial(create, admin, name))
                self._try("alter configuration", label, partial(alter, admin, name))
                self._try("delete records", label, partial(admin.delete_records, {TopicPartition(name, 0): 0}, None, 1))
                if label not in DELETED[self._part]:
                    # It would be, under those who still try.
                    self._try("delete topic", label, partial(admin.delete_topics, [name]))
            for owner, group in GROUPS.items():
                self._try("use group", owner, partial(use_group, admin, group.format(app_id)))
            acl = ACL(
                "User:x", "*", ACLOperation.READ, ACLPermissionType.ALLOW, ResourcePattern(ResourceType.TOPIC, "x")
            )
            self._try("change rights", "cluster", partial(refused, lambda: admin.create_acls([acl])["failed"]))
            user = UserScramCredentialUpsertion("x", ScramMechanism.SCRAM_SHA_256, "x", iterations=4096)
            changed = partial(admin.alter_user_scram_credentials, [user])
            self._try("change users", "cluster", partial(refused, lambda: filter(None, changed().values())))
        with closing(KafkaProducer(**options, transactional_id="x", max_block_ms=5_000)) as producer:
            self._try("use transactional id", "x", producer.init_transactions)
        return self

    def _try(self, operation: str, target: str, attempt: Callable[[], object]) -> None:
        try:
            attempt()
        except (AuthorizationError, TopicMissingError):
            self.denied[operation].append(target)
        else:
            self.allowed[operation].append(target)


def write(producer: KafkaProducer, name: str) -> None:
    producer.send(name, b"x", key=b"k").get(5)


def read(consumer: KafkaConsumer, name: str) -> None:
    if not consumer.partitions_for_topic(name):
        # Whoever may not describe it does not see it.
        raise TopicMissingError(name)
    consumer.assign([TopicPartition(name, 0)])
    consumer.seek_to_beginning()
    consumer.poll(timeout_ms=500)


def create(admin: KafkaAdminClient, name: str) -> None:
    with suppress(TopicAlreadyExistsError):
        admin.create_topics([NewTopic(name, 1, 1)], validate_only=True)


def alter(admin: KafkaAdminClient, name: str) -> None:
    resource = ConfigResource(ConfigResourceType.TOPIC, name, {"retention.ms": "-1"})
    answer = admin.alter_configs([resource], validate_only=True, raise_on_unknown=False)["topic"][name]
    refused(lambda: [] if answer == "OK" else [answer])


# Until the brokers have made the topic of the offsets.
@retry(
    retry=retry_if_exception_type(CoordinatorNotAvailableError),
    stop=stop_after_delay(SECONDS),
    wait=wait_fixed(0.2),
    reraise=True,
)
def use_group(admin: KafkaAdminClient, name: str) -> None:
    admin.list_group_offsets(name)


def refused(call: Callable[[], Iterable[object]]) -> None:
    """Raise what a call answers with instead of raising it."""
    for answer in call():
        assert re.search(r"authoriz|needs ALTER permission", str(answer), re.IGNORECASE), answer
        raise AuthorizationError(answer)
