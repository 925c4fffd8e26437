"""Tokens for OAUTHBEARER."""

import base64
from collections.abc import Iterator
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

import pytest
from kafka.errors import KafkaConnectionError
from kafka.net.sasl.msk import AwsMskIamClient

from foldtune.errors import InvalidSettingsError
from foldtune.settings import KafkaSettings
from foldtune.tokens import Tokens, tokens
from tests.secured import PASSWORD, token_server

MSK = ",".join(f"b-{number}.logs.a1b2c3.c2.kafka.eu-central-1.amazonaws.com:9098" for number in (1, 2))


def test_a_token_is_used_again_for_most_of_its_life() -> None:
    time, issued = [0.0], iter("abc")
    provider = Tokens(lambda: (next(issued), 100.0), lambda: time[0])
    found = []
    for time[0] in (0.0, 79.0, 81.0, 160.0, 162.0):
        found.append(provider.token())
    assert found == ["a", "a", "b", "b", "c"]


def test_after_a_failure_the_next_connection_asks_again() -> None:
    answers: Iterator[Exception | tuple[str, float]] = iter([KafkaConnectionError("away"), ("a", 100.0)])

    def fetch() -> tuple[str, float]:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    provider = Tokens(fetch)
    with pytest.raises(KafkaConnectionError):
        provider.token()
    assert provider.token() == "a"


def oauth(url: str, password: str = PASSWORD) -> KafkaSettings:
    return KafkaSettings.model_validate(
        {
            "security_protocol": "SASL_SSL",
            "sasl_mechanism": "OAUTHBEARER",
            "sasl_username": "me",
            "sasl_password": password,
            "sasl_oauthbearer_token_endpoint_url": url,
        }
    )


def test_a_server_gives_tokens_to_whoever_knows_the_secret() -> None:
    with token_server() as url:
        provider = tokens(oauth(f"{url}/token"))
        assert provider
        assert provider.token() == provider.token()
        assert provider.token().count(".") == 2
        for refused in (oauth(f"{url}/token", "wrong"), oauth("http://127.0.0.1:1/token")):
            provider = tokens(refused)
            assert provider
            with pytest.raises(KafkaConnectionError, match="no token from http") as error:
                provider.token()
            assert "wrong" not in str(error.value)


def test_clients_with_a_password_need_none() -> None:
    assert tokens(KafkaSettings()) is None


def msk(servers: str = MSK) -> KafkaSettings:
    return KafkaSettings(bootstrap_servers=servers, security_protocol="SASL_SSL", sasl_mechanism="AWS_MSK_IAM")


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    found = {"access_key": "AKIAIOSFODNN7EXAMPLE", "secret_key": "secret", "token": "session/+="}
    for name, value in zip(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY", "SESSION_TOKEN"), found.values(), strict=True):
        monkeypatch.setenv(f"AWS_{name}", value)
    return found


def test_the_token_for_msk_is_the_request_that_another_library_signs(credentials: dict[str, str]) -> None:
    tokens.cache_clear()
    provider = tokens(msk())
    assert provider
    token = provider.token()
    url = urlsplit(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)).decode())
    fields = {name: value for name, (value,) in parse_qs(url.query).items()}
    host = "kafka.eu-central-1.amazonaws.com"
    assert (url.scheme, url.netloc, url.path) == ("https", host, "/")
    assert fields["Action"] == "kafka-cluster:Connect"
    assert fields["X-Amz-Expires"] == "900"
    signer = AwsMskIamClient(host, region="eu-central-1", **credentials)
    signer.timestamp = fields["X-Amz-Date"]
    signer.datestamp = datetime.strptime(fields["X-Amz-Date"], "%Y%m%dT%H%M%SZ").strftime("%Y%m%d")
    assert fields["X-Amz-Credential"] == signer._credential
    assert fields["X-Amz-Signature"] in signer.first_message().decode()


@pytest.mark.usefixtures("credentials")
def test_the_region_of_msk_is_in_its_addresses_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    serverless = "boot-x.c1.kafka-serverless.us-west-2.amazonaws.com:9098"
    assert tokens(msk(serverless))
    with pytest.raises(InvalidSettingsError, match=r"AWS_REGION is needed for the brokers at kafka\.internal:9098"):
        tokens(msk("kafka.internal:9098"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    assert tokens(msk("kafka.internal:9098"))


def test_without_credentials_of_aws_there_is_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/none")
    tokens.cache_clear()
    provider = tokens(msk())
    assert provider
    with pytest.raises(KafkaConnectionError, match="no token of AWS"):
        provider.token()
