"""Kafka credentials from AWS Secrets Manager, in the format of Lambda's event source mappings.

A secret is a JSON object with ``username`` and ``password``, or with ``certificate``, ``privateKey`` and optionally
``privateKeyPassword``; that of a CA has ``certificate`` only. Certificates and keys are PEM.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from foldtune.errors import SecretError
from foldtune.object_store import AWS_ERRORS
from foldtune.reasons import reasons_of
from foldtune.settings import KafkaSettings, Settings


class _Secret(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel, hide_input_in_errors=True)

    username: str | None = None
    password: str | None = None
    certificate: str | None = None
    private_key: str | None = None
    private_key_password: str | None = None


@contextmanager
def kafka_with_secrets(settings: Settings) -> Iterator[KafkaSettings]:
    """The Kafka settings with the current values of their secrets; certificate files exist until the context ends.

    Raises:
        SecretError: a secret cannot be read, or has another format.
    """
    kafka = settings.kafka
    with tempfile.TemporaryDirectory(prefix="foldtune-tls-") as folder:
        changes: dict[str, object] = {}
        if kafka.secret_arn:
            changes |= _credentials(_read_secret(kafka.secret_arn, settings), kafka.secret_arn, Path(folder))
        if kafka.ca_secret_arn:
            authority = _read_secret(kafka.ca_secret_arn, settings).certificate
            changes["ssl_cafile"] = _write_pem(Path(folder, "authority.pem"), authority, kafka.ca_secret_arn)
        try:
            complete = KafkaSettings.model_validate(kafka.model_dump() | changes)
        except ValidationError as error:
            raise SecretError(kafka.secret_arn, "; ".join(reasons_of(error))) from None
        yield complete


def _credentials(secret: _Secret, name: str, folder: Path) -> dict[str, object]:
    if secret.username and secret.password:
        return {"sasl_username": secret.username, "sasl_password": secret.password}
    return {
        "ssl_certfile": _write_pem(folder / "certificate.pem", secret.certificate, name),
        "ssl_keyfile": _write_pem(folder / "key.pem", secret.private_key, name),
        "ssl_key_password": secret.private_key_password,
    }


def _write_pem(path: Path, pem: str | None, name: str) -> Path:
    if not pem:
        raise SecretError(name, f"no {path.stem}")
    path.write_text(pem)
    return path


def _read_secret(name: str, settings: Settings) -> _Secret:
    try:
        client = boto3.client("secretsmanager", region_name=settings.s3.region)
        return _Secret.model_validate_json(client.get_secret_value(SecretId=name).get("SecretString", ""))
    except (ValidationError, *AWS_ERRORS) as error:
        raise SecretError(name, error) from error
