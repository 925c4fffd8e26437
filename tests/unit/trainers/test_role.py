"""The credentials of a training on AWS."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import botocore.client
import pytest

from foldtune.object_keys import checkpoint_key, model_prefix
from foldtune.object_store import S3ObjectStore
from foldtune.settings import S3Settings, Settings
from tests.support import fine_tune_request
from trainers import job as trainer
from trainers.role import role_session

ROLE = "arn:aws:iam::123456789012:role/training"
REQUEST = fine_tune_request("r-1", "helpdesk")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """The calls of AWS; each role that is assumed has credentials for ten minutes."""
    found: list[tuple[str, dict[str, Any]]] = []

    def call(client: Any, operation: str, parameters: dict[str, Any]) -> dict[str, Any]:
        found.append((operation, parameters))
        keys = {"AccessKeyId": f"key {len(found)}", "SecretAccessKey": "secret", "SessionToken": "token"}
        return {"Credentials": keys | {"Expiration": datetime.now(UTC) + timedelta(minutes=10)}}

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", call)
    return found


def test_a_training_assumes_its_role_with_the_segments_of_its_keys(calls: list[tuple[str, dict[str, Any]]]) -> None:
    session = role_session(ROLE, REQUEST, "eu-central-1")
    assert not calls
    credentials = session.get_credentials()
    assert credentials
    # Those that expire soon are renewed.
    assert [credentials.get_frozen_credentials().access_key for _ in range(2)] == ["key 1", "key 2"]
    (operation, parameters), _ = calls
    assert (operation, parameters["RoleArn"]) == ("AssumeRole", ROLE)
    tags = {tag["Key"]: tag["Value"] for tag in parameters["Tags"]}
    assert model_prefix(REQUEST.model, "1") == f"models/{tags['model']}/1"
    assert checkpoint_key(REQUEST.model, REQUEST.request_id, "1").startswith(f"checkpoints/{tags['request']}/1/")
    assert len(parameters["RoleSessionName"]) <= 64


def test_the_store_of_a_session_has_its_credentials(calls: list[tuple[str, dict[str, Any]]]) -> None:
    store = S3ObjectStore(S3Settings(), role_session(ROLE, REQUEST, "us-east-1"))
    assert cast(Any, store._client)._request_signer._credentials.get_frozen_credentials().access_key == "key 1"


@pytest.mark.parametrize("role", [ROLE, None])
def test_only_the_job_is_read_before_the_role_is_assumed(
    role: str | None, monkeypatch: pytest.MonkeyPatch, calls: list[tuple[str, dict[str, Any]]]
) -> None:
    stores: list[Any] = []

    class Store(S3ObjectStore):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            stores.append(self)

    used: list[Any] = []

    def read(store: Any, _: str) -> Any:
        used.append(store)
        return SimpleNamespace(request=REQUEST)

    monkeypatch.setattr(trainer, "S3ObjectStore", Store)
    monkeypatch.setattr(trainer, "read_job", read)
    monkeypatch.setattr(trainer, "run", lambda *arguments: used.append(arguments[2]))
    settings = Settings.model_validate({"trainer": {"role_arn": role}})
    trainer._run_rank_0("s3://foldtune/jobs/x/job.json", settings)
    assert [store._session is None for store in stores] == [True, *([False] if role else [])]
    assert [store._store for store in used] == [stores[0], stores[-1]]
