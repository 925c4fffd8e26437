"""Kafka credentials from AWS Secrets Manager."""

import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat
from cryptography.x509.oid import NameOID
from moto import mock_aws

from foldtune.errors import InvalidSettingsError, NoBrokerError, SecretError
from foldtune.kafka import client_options
from foldtune.secrets import kafka_with_secrets
from foldtune.settings import KafkaSettings, Settings


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Secrets Manager."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with mock_aws():
        yield boto3.client("secretsmanager", region_name="us-east-1")


def secret(client: Any, content: object, name: str = "kafka") -> str:
    text = content if isinstance(content, str) else json.dumps(content)
    return str(client.create_secret(Name=name, SecretString=text)["ARN"])


def certificate(password: str) -> dict[str, str]:
    """A self-signed certificate and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    begin = datetime.now(UTC) - timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=30))
        .sign(key, hashes.SHA256())
    )
    secret_key = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password.encode()))
    return {
        "certificate": made.public_bytes(Encoding.PEM).decode(),
        "privateKey": secret_key.decode(),
        "privateKeyPassword": password,
    }


def test_without_secrets_the_settings_are_unchanged() -> None:
    with kafka_with_secrets(settings := Settings()) as kafka:
        assert kafka == settings.kafka


def test_username_and_password_are_used_and_a_rotation_is_seen(client: Any) -> None:
    arn = secret(client, {"username": "one", "password": "p1"})
    settings = Settings(
        kafka=KafkaSettings(security_protocol="SASL_SSL", sasl_mechanism="SCRAM-SHA-512", secret_arn=arn)
    )
    with kafka_with_secrets(settings) as kafka:
        options = client_options(kafka)
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("one", "p1")
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    client.put_secret_value(SecretId=arn, SecretString=json.dumps({"username": "two", "password": "p2"}))
    with kafka_with_secrets(settings) as kafka:
        options = client_options(kafka)
    assert (options["sasl_plain_username"], options["sasl_plain_password"]) == ("two", "p2")


def test_certificate_and_ca_are_used_and_their_files_deleted(client: Any) -> None:
    content = certificate("secret")
    settings = Settings(
        kafka=KafkaSettings(
            security_protocol="SSL",
            secret_arn=secret(client, content),
            ca_secret_arn=secret(client, {"certificate": content["certificate"]}, "authority"),
        )
    )
    with kafka_with_secrets(settings) as kafka:
        context = client_options(kafka)["ssl_context"]
        assert kafka.ssl_keyfile
        assert kafka.ssl_keyfile.exists()
        assert kafka.ssl_keyfile.parent.stat().st_mode & 0o777 == 0o700
    assert not kafka.ssl_keyfile.exists()
    assert context.verify_mode is ssl.CERT_REQUIRED
    [authority] = context.get_ca_certs()
    assert authority["subject"] == ((("commonName", "client"),),)


def test_a_training_reports_with_the_credentials_of_the_secret(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainers import job as trainer

    used: list[KafkaSettings] = []

    def no_broker(kafka: KafkaSettings) -> None:
        used.append(kafka)
        raise NoBrokerError(kafka.bootstrap_servers)

    monkeypatch.setattr(trainer, "Publisher", no_broker)
    arn = secret(client, {"username": "one", "password": "p1"})
    with (
        pytest.raises(NoBrokerError),
        trainer._publisher(Settings(kafka=KafkaSettings(security_protocol="SASL_SSL", secret_arn=arn))),
    ):
        pass
    [kafka] = used
    assert kafka.sasl_username == "one"


@pytest.mark.parametrize("content", ["no JSON: s3cret", {"username": "one", "passwort": "s3cret"}, {}, ["s3cret"]])
def test_a_secret_of_another_format_is_an_error_without_its_content(client: Any, content: object) -> None:
    settings = Settings(kafka=KafkaSettings(secret_arn=secret(client, content)))
    with pytest.raises(SecretError) as error, kafka_with_secrets(settings):
        pass
    assert "secret:kafka" in str(error.value)
    assert "s3cret" not in str(error.value)


def test_a_secret_that_does_not_suit_the_protocol_is_an_error_of_the_secret(client: Any) -> None:
    arn = secret(client, {"username": "one", "password": "s3cret"})
    settings = Settings(kafka=KafkaSettings(security_protocol="SSL", secret_arn=arn))
    with (
        pytest.raises(SecretError, match=r"secret:kafka.*SASL_USERNAME.* without effect") as error,
        kafka_with_secrets(settings),
    ):
        pass
    assert "s3cret" not in str(error.value)


@pytest.mark.parametrize("password", [None, "wrong"])
def test_a_key_without_its_password_is_an_error_and_no_question(client: Any, password: str | None) -> None:
    content = certificate("s3cret") | {"privateKeyPassword": password}
    settings = Settings(kafka=KafkaSettings(security_protocol="SSL", secret_arn=secret(client, content)))
    with kafka_with_secrets(settings) as kafka, pytest.raises(InvalidSettingsError, match="ssl_key_password"):
        client_options(kafka)
