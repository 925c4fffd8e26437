"""The local servers: the features that foldtune needs, and their lifecycle."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import boto3
import psutil
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from kafka import KafkaConsumer, KafkaProducer
from tenacity import retry, retry_if_result, stop_after_delay, wait_fixed

from infra.local import control, pid_files
from infra.local.errors import DataFolderInUseError, ServerStartError
from infra.local.options import LocalOptions
from infra.local.pid_files import ProcessIdentity
from infra.local.server import STOP_SECONDS
from infra.local.stack import LocalServers

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

MIB = 1024 * 1024

# A parent that prints the process ids of its servers, then blocks until it is killed.
PARENT = """
import sys
from pathlib import Path
from infra.local.options import LocalOptions
from infra.local.stack import LocalServers
servers = LocalServers(LocalOptions(data_dir=Path(sys.argv[1]), kafka_port=None, s3_port=None)).start()
print("pids", servers.kafka.pid, servers.s3.pid, flush=True)
sys.stdin.read()
"""


def s3_client(servers: LocalServers, key: str | None = None) -> "S3Client":
    return boto3.client(
        "s3",
        endpoint_url=servers.s3_endpoint,
        region_name="us-east-1",
        aws_access_key_id=servers.access_key,
        aws_secret_access_key=key or servers.secret_key,
        config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
    )


def status_of(call: Callable[[], object]) -> int:
    with pytest.raises(ClientError) as caught:
        call()
    return int(caught.value.response["ResponseMetadata"]["HTTPStatusCode"])


def produce(servers: LocalServers, topic: str, *values: bytes) -> None:
    with closing(KafkaProducer(bootstrap_servers=servers.bootstrap_servers, acks="all")) as producer:
        for value in values:
            producer.send(topic, value).get(timeout=30)


def consume(servers: LocalServers, topic: str, count: int) -> list[bytes]:
    consumer = KafkaConsumer(
        topic,
        bootstrap_servers=servers.bootstrap_servers,
        group_id=f"group-{uuid4()}",
        auto_offset_reset="earliest",
        consumer_timeout_ms=30_000,
    )
    with closing(consumer):
        return [message.value for _, message in zip(range(count), consumer, strict=False)]


@retry(retry=retry_if_result(bool), stop=stop_after_delay(2 * STOP_SECONDS), wait=wait_fixed(0.1))
def wait_for_exit(*pids: int) -> list[int]:
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def s3(local_servers: LocalServers) -> Iterator["S3Client"]:
    with closing(s3_client(local_servers)) as client:
        yield client


@pytest.fixture(scope="module")
def own_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServers]:
    """A second stack, whose servers these tests may stop and kill."""
    options = LocalOptions(data_dir=tmp_path_factory.mktemp("own"), kafka_port=None, s3_port=None, keep_data=False)
    with LocalServers(options) as servers:
        yield servers


@pytest.fixture
def key() -> str:
    return f"tests/{uuid4()}"


def test_produced_records_are_consumed(local_servers: LocalServers) -> None:
    topic = f"auto-created-{uuid4()}"
    produce(local_servers, topic, b"one", b"two")
    assert sorted(consume(local_servers, topic, 2)) == [b"one", b"two"]


def test_the_bucket_exists_and_stores_objects(s3: "S3Client", key: str) -> None:
    s3.put_object(Bucket="foldtune", Key=key, Body=b"content")
    assert s3.get_object(Bucket="foldtune", Key=key)["Body"].read() == b"content"


def test_a_conditional_write_to_an_existing_key_fails(s3: "S3Client", key: str) -> None:
    s3.put_object(Bucket="foldtune", Key=key, Body=b"first", IfNoneMatch="*")
    second = status_of(lambda: s3.put_object(Bucket="foldtune", Key=key, Body=b"second", IfNoneMatch="*"))
    assert second == 412
    assert s3.get_object(Bucket="foldtune", Key=key)["Body"].read() == b"first"


def test_multipart_uploads_and_range_requests(s3: "S3Client", key: str) -> None:
    parts = [b"a" * (5 * MIB), b"the end"]
    upload = s3.create_multipart_upload(Bucket="foldtune", Key=key)["UploadId"]
    done = [
        s3.upload_part(Bucket="foldtune", Key=key, UploadId=upload, PartNumber=number, Body=body)["ETag"]
        for number, body in enumerate(parts, 1)
    ]
    s3.complete_multipart_upload(
        Bucket="foldtune",
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"ETag": tag, "PartNumber": number} for number, tag in enumerate(done, 1)]},
    )
    whole = s3.head_object(Bucket="foldtune", Key=key)["ContentLength"]
    assert whole == sum(map(len, parts))
    piece = s3.get_object(Bucket="foldtune", Key=key, Range=f"bytes={5 * MIB - 1}-{whole - 1}")
    assert piece["Body"].read() == b"athe end"


def test_a_unicode_key_is_listed_unchanged(s3: "S3Client", key: str) -> None:
    name = f"{key}/Größe=鍵"
    s3.put_object(Bucket="foldtune", Key=name, Body=b"x")
    assert [item["Key"] for item in s3.list_objects_v2(Bucket="foldtune", Prefix=key)["Contents"]] == [name]


def test_a_wrong_secret_key_is_refused(local_servers: LocalServers) -> None:
    with closing(s3_client(local_servers, key="guessed")) as client:
        assert status_of(client.list_buckets) == 403


def test_two_stacks_are_isolated(
    local_servers: LocalServers, own_servers: LocalServers, s3: "S3Client", key: str
) -> None:
    assert own_servers.bootstrap_servers != local_servers.bootstrap_servers
    with closing(s3_client(own_servers)) as own:
        own.put_object(Bucket="foldtune", Key=key, Body=b"own")
    assert status_of(lambda: s3.get_object(Bucket="foldtune", Key=key)) == 404


def test_a_data_folder_serves_one_stack(own_servers: LocalServers) -> None:
    with pytest.raises(DataFolderInUseError):
        LocalServers(own_servers.options).start()
    assert control.status(own_servers.options.data_dir).running


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_restarted_broker_keeps_its_data_and_port(own_servers: LocalServers, how: str) -> None:
    topic, before, pid = f"kept-{uuid4()}", own_servers.bootstrap_servers, own_servers.kafka.pid
    produce(own_servers, topic, b"kept")
    if how == "kill":
        own_servers.kafka.kill()
        assert own_servers.kafka.pid is None
        own_servers.kafka.start()
    else:
        own_servers.kafka.restart()
    assert own_servers.bootstrap_servers == before
    assert own_servers.kafka.pid not in {pid, None}
    assert consume(own_servers, topic, 1) == [b"kept"]


def test_a_restarted_s3_server_keeps_its_objects(own_servers: LocalServers, key: str) -> None:
    with closing(s3_client(own_servers)) as own:
        own.put_object(Bucket="foldtune", Key=key, Body=b"kept")
        own_servers.s3.restart()
        assert own.get_object(Bucket="foldtune", Key=key)["Body"].read() == b"kept"


def test_a_failed_start_shows_the_log(own_servers: LocalServers) -> None:
    own_servers.kafka.stop()
    properties = Path(own_servers.kafka.spec.command[-1])
    good = properties.read_text()
    properties.write_text(good.replace("node.id=1", "node.id=minus one"))
    try:
        with pytest.raises(ServerStartError, match="minus one"):
            own_servers.kafka.start()
    finally:
        properties.write_text(good)
        own_servers.kafka.start()


def test_servers_exit_with_a_killed_parent_and_restart_on_their_data(own_servers: LocalServers, tmp_path: Path) -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        # Log lines precede the process ids.
        pids = next([int(pid) for pid in line.split()[1:]] for line in parent.stdout if line.startswith("pids "))
        assert control.status(tmp_path).running
        parent.kill()
    wait_for_exit(*pids)
    assert control.status(tmp_path).stale

    # The requested ports are in use by another stack.
    options = LocalOptions(
        data_dir=tmp_path, kafka_port=own_servers.kafka.port, s3_port=own_servers.s3.port, keep_data=False
    )
    with LocalServers(options) as servers:
        assert {servers.kafka.port, servers.s3.port}.isdisjoint({own_servers.kafka.port, own_servers.s3.port})
        assert not control.status(tmp_path).stale
        folder = servers.log_dir.parent
        assert pid_files.read(ProcessIdentity, folder / "config" / "kafka.json") is not None
    assert not folder.exists()


def test_the_command_runs_servers_in_the_background(tmp_path: Path) -> None:
    def local(command: str, *options: str) -> "subprocess.CompletedProcess[str]":
        arguments = [sys.executable, "-m", "infra.local", command, "--data-dir", str(tmp_path), *options]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    up = local("up", "--detach", "--no-keep-data")
    try:
        assert up.returncode == 0, up.stderr
        address = control.status(tmp_path).servers[0].address
        assert f"export FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS={address}\n" in up.stdout
        assert local("status").returncode == 0
        assert local("up").returncode == 1
        assert local("status").returncode == 0
    finally:
        down = local("down")
    assert down.stdout == "stopped\n"
    assert local("status").returncode == 3
