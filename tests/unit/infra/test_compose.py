"""The compose file is valid and runs the same servers as ``foldtune local``."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from foldtune.settings import load_settings
from infra.local import kafka, lock, s3
from infra.local.options import LocalOptions

COMPOSE = Path(kafka.__file__).parent.parent / "compose.yaml"

# In a container the broker has another listener, for the other containers.
CONTAINER_SETTINGS = {"listener.security.protocol.map"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    return services


@pytest.mark.slow
def test_the_files_are_valid() -> None:
    files = [COMPOSE, COMPOSE.with_name("compose.gpu.yaml")]
    check = Path(sys.executable).parent / "check-jsonschema"
    schema = ["--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([check, *schema, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_containers_are_unprivileged_and_refer_to_existing_targets_and_services(
    services: dict[str, Any],
) -> None:
    ours = {name: service for name, service in services.items() if "build" in service}
    assert set(ours) == {"worker", "launcher", "api", "notifier"}
    dockerfile = (COMPOSE.parent / "docker" / "Dockerfile").read_text(encoding="utf-8")
    for name, service in ours.items():
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        # Not part of a plain `compose up`; without a webhook there is nothing to notify.
        assert service["profiles"] == ["notifications" if name == "notifier" else "system"]
        assert f"AS {service['build']['target']}\n" in dockerfile
        assert set(service["depends_on"]) <= set(services)


def test_what_reads_the_object_store_can(services: dict[str, Any]) -> None:
    for name in ("worker", "launcher", "api"):
        settings = services[name]["environment"]
        assert settings["FOLDTUNE_S3__SECRET_ACCESS_KEY"] == services["s3"]["environment"]["S3PROXY_CREDENTIAL"]


def test_the_notifier_starts_with_the_webhooks_of_the_comment(
    services: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    example = re.search(r"^#   export (FOLDTUNE_NOTIFICATIONS__WEBHOOKS)='(.*)'$", COMPOSE.read_text(), re.MULTILINE)
    assert example
    target, secret = services["notifier"]["configs"][0]["target"], tmp_path / "secret"
    assert f'"secret_file": "{target}"' in example[2]
    secret.write_text("none")
    monkeypatch.setenv(example[1], example[2].replace("…", "hooks.example.com").replace(target, str(secret)))
    assert load_settings.__wrapped__().notifications.webhooks
    assert services["notifier"]["environment"][example[1]] == f"${{{example[1]}:-[]}}"


def test_the_broker_has_the_same_settings(services: dict[str, Any]) -> None:
    environment = services["kafka"]["environment"]
    wanted = {name: value for name, value in kafka.SETTINGS.items() if name not in CONTAINER_SETTINGS}
    assert {name: environment.get("KAFKA_" + name.upper().replace(".", "_")) for name in wanted} == wanted
    assert environment["KAFKA_NUM_PARTITIONS"] == str(LocalOptions().partitions)


def test_the_s3_server_has_the_same_settings(services: dict[str, Any]) -> None:
    environment = services["s3"]["environment"]
    lines = s3.settings_text(LocalOptions(), Path("/data"), 80).splitlines()
    wanted = dict(line.split("=", 1) for line in lines)
    # Within its container it has to listen on more than the loopback interface.
    assert wanted.pop("s3proxy.endpoint").endswith(":80")
    assert {name: environment.get(name.upper().replace(".", "_")) for name in wanted} == wanted


def test_the_images_have_the_locked_versions(services: dict[str, Any]) -> None:
    assert services["kafka"]["image"].endswith(f":{lock.KAFKA[2]}")
    assert services["s3"]["image"].endswith(f"-{lock.S3PROXY[2]}")


def test_every_port_is_on_the_loopback_interface_and_every_server_is_checked(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"][0].startswith("CMD")


def test_workers_that_are_started_as_documented_are_separate_members_of_their_group(services: dict[str, Any]) -> None:
    # The same service is started several times, so an instance id in it would be the same for all.
    assert "FOLDTUNE_WORKER__INSTANCE_ID" not in services["worker"]["environment"]
    dockerfile = (COMPOSE.parent / "docker" / "Dockerfile").read_text(encoding="utf-8")
    assert "FOLDTUNE_WORKER__INSTANCE_ID" not in dockerfile
    commands = re.findall(r"^(.*)\bfoldtune worker\b", (COMPOSE.parents[1] / "README.md").read_text(), re.MULTILINE)
    assert len(commands) > 1
    for name in ("DATA_DIR", "INSTANCE_ID"):
        values = [value for command in commands for value in re.findall(rf"FOLDTUNE_WORKER__{name}=(\S+)", command)]
        assert len(values) == len(set(values))
        assert len(values) == len(commands) or name == "INSTANCE_ID"
