"""Settings from the environment and the file, and errors that name the variable."""

import json
from pathlib import Path

import pytest

from foldtune.errors import InvalidSettingsError
from foldtune.events import ModelReference
from foldtune.settings import SetLimits, Settings, load_settings, settings_environment


@pytest.fixture(autouse=True)
def _no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def error_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> str:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettingsError) as error:
        load_settings.__wrapped__()
    # A cause would print the values of secrets with the traceback.
    assert error.value.__cause__ is None
    assert error.value.__suppress_context__
    return str(error.value)


@pytest.mark.parametrize(
    ("variables", "reference"),
    [
        ({"": "file:///models/x"}, ModelReference(uri="file:///models/x")),
        ({"": '{"uri": "file:///models/x"}'}, ModelReference(uri="file:///models/x")),
        ({"__URI": "file:///models/x"}, ModelReference(uri="file:///models/x")),
        ({"": "hf://a/b", "__REVISION": "r"}, ModelReference(uri="hf://a/b", revision="r")),
        ({"__REVISION": "r", "": "hf://a/b"}, ModelReference(uri="hf://a/b", revision="r")),
    ],
)
def test_the_base_model_is_a_uri_or_its_fields(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reference: ModelReference
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"FOLDTUNE_TRAINER__BASE_MODEL{name}", value)
    assert Settings().trainer.base_model == reference


def test_the_base_model_is_a_uri_in_the_file() -> None:
    Path("foldtune.toml").write_text('trainer.base_model = "s3://models/x"')
    assert Settings().trainer.base_model == ModelReference(uri="s3://models/x")


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        (
            "FOLDTUNE_WORKER",
            '{"app_id": ',
            "FOLDTUNE_WORKER: Input should be a section, as JSON or as one variable per field "
            "(FOLDTUNE_WORKER__APP_ID, …)",
        ),
        (
            "FOLDTUNE_TRAINER__MODEL_FOLDERS",
            "/models",
            "FOLDTUNE_TRAINER__MODEL_FOLDERS: Input should be a list, as JSON, got '/models'",
        ),
        ("FOLDTUNE_SETS__FOLDERS", "f", "FOLDTUNE_SETS__FOLDERS: Input should be an object, as JSON, got 'f'"),
        (
            "FOLDTUNE_KAFKA__PARTITIONS",
            "0",
            "FOLDTUNE_KAFKA__PARTITIONS: Input should be greater than or equal to 1, got '0'",
        ),
        ("FOLDTUNE_BOUNDS__FUTURE", "P2D", "FOLDTUNE_BOUNDS__FUTURE: Input should be less than or equal to 1d"),
        ("FOLDTUNE_BOUNDS__FUTURE", "-PT1S", "FOLDTUNE_BOUNDS__FUTURE: Input should be greater than or equal to 0s"),
        ("FOLDTUNE_TRAINER__BASE_MODEL", "/models", "FOLDTUNE_TRAINER__BASE_MODEL, trainer.base_model.uri: "),
        ("FOLDTUNE_BATCH__INSTANCE_TYPES", '["x"]', "FOLDTUNE_BATCH__INSTANCE_TYPES: should have a price"),
    ],
)
def test_an_error_names_the_variable_its_value_and_what_is_expected(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, message: str
) -> None:
    assert error_of(monkeypatch, **{variable: value}).startswith(f"Invalid settings: {message}")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FOLDTUNE_KAFKA", '{"sasl_password": "hunter2"'),
        ("FOLDTUNE_KAFKA", '{"sasl_password": ["hunter2"]}'),
        ("FOLDTUNE_S3__SECRET_ACCESS_KEY__X", "hunter2"),
        ("FOLDTUNE_S3__SECRET_KEY", "hunter2"),
        ("FOLDTUNE_WORKER__ERASURE_KEYS", "hunter2"),
    ],
)
def test_an_error_does_not_show_secrets(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    message = error_of(monkeypatch, **{variable: value})
    assert variable in message
    assert "hunter2" not in message


SECRETS = [
    (section, name)
    for section, field in Settings.model_fields.items()
    for name, part in getattr(field.annotation, "model_fields", {}).items()
    if "SecretStr" in str(part.annotation)
]


@pytest.mark.parametrize(("section", "name"), SECRETS)
def test_an_error_shows_no_secret_of_any_section(monkeypatch: pytest.MonkeyPatch, section: str, name: str) -> None:
    message = error_of(monkeypatch, **{f"FOLDTUNE_{section.upper()}": json.dumps({name: 31337})})
    assert name in message.lower()
    assert "31337" not in message


def test_sections_have_secrets() -> None:
    assert {("kafka", "sasl_password"), ("s3", "secret_access_key"), ("worker", "erasure_keys")} <= set(SECRETS)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("FOLDTUNE_LOGLEVEL", ", did you mean FOLDTUNE_LOG_LEVEL?"),
        ("FOLDTUNE_LOG_LEVEL__X", ", did you mean FOLDTUNE_LOG_LEVEL?"),
        ("FOLDTUNE_KAFKA_BOOTSTRAP_SERVERS", ", did you mean FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS?"),
        ("FOLDTUNE_KAFKA__BOOTSTRAP_SERVER", ", did you mean FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS?"),
        ("FOLDTUNE_WORKR__APP_ID", ", did you mean FOLDTUNE_WORKER__APP_ID?"),
        ("FOLDTUNE_WORKER_HTTP_PORT", ", did you mean FOLDTUNE_WORKER__HTTP_PORT?"),
        ("FOLDTUNE_ZZZ", ""),
    ],
)
def test_a_variable_of_no_setting_is_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, variable: str, nearest: str
) -> None:
    assert error_of(monkeypatch, **{variable: "hunter2"}) == f"Invalid settings: {variable}: unknown setting{nearest}"


def test_a_misspelt_key_of_a_rule_is_answered_with_the_rules_own_key(monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of(monkeypatch, FOLDTUNE_POLICY__RULES='[{"model": "m", "cooldow": "6h", "quality": {"windo": 1}}]')
    assert "policy.rules.0.cooldow: unknown setting, did you mean cooldown?" in message
    assert "policy.rules.0.quality.windo: unknown setting, did you mean window?" in message


def test_an_invalid_item_is_one_error_and_not_also_a_list_that_is_too_short(monkeypatch: pytest.MonkeyPatch) -> None:
    message = error_of(monkeypatch, FOLDTUNE_API__GRANTS='[{"value": "x", "roles": ["boss"]}]')
    assert message.endswith("roles.0: Input should be 'viewer', 'requester', 'approver', 'operator' or 'privacy'")
    message = error_of(monkeypatch, FOLDTUNE_API__GRANTS='[{"value": "x", "roles": []}]')
    assert message.endswith("roles: Input should have at least 1 item, not 0")


def test_an_unknown_name_in_the_file_is_refused_with_the_nearest_one() -> None:
    Path("foldtune.toml").write_text("[worker]\napp = 'x'\n[workers]\n")
    with pytest.raises(InvalidSettingsError) as error:
        load_settings.__wrapped__()
    assert "foldtune.toml, worker.app: unknown setting, did you mean worker.app_id?" in str(error.value)
    assert "foldtune.toml, workers: unknown setting, did you mean worker?" in str(error.value)


SASL = {"SASL_USERNAME": "me", "SASL_PASSWORD": "hunter2"}
TOKENS = {"SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": "https://issuer.example.com/token"}
OAUTH = {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "OAUTHBEARER", **SASL, **TOKENS}


@pytest.mark.parametrize(
    ("kafka", "problem"),
    [
        (SASL, "SASL_USERNAME and SASL_PASSWORD: without effect, as SECURITY_PROTOCOL is PLAINTEXT"),
        (
            {"SASL_PASSWORD": "hunter2", "SECURITY_PROTOCOL": "SSL"},
            "SASL_PASSWORD: without effect, as SECURITY_PROTOCOL is SSL",
        ),
        ({"SASL_MECHANISM": "AWS_MSK_IAM"}, "SECURITY_PROTOCOL: should be SASL_SSL for AWS_MSK_IAM, got PLAINTEXT"),
        ({"SECURITY_PROTOCOL": "SASL_SSL"}, "SASL_USERNAME and SASL_PASSWORD: needed for SASL_SSL with PLAIN"),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "SCRAM-SHA-512", "SASL_USERNAME": "me"},
            "SASL_PASSWORD: needed for SASL_SSL with SCRAM-SHA-512",
        ),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "OAUTHBEARER", **SASL},
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: needed for SASL_SSL with OAUTHBEARER",
        ),
        (
            {**OAUTH, "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": "http://localhost@issuer.example.com/token"},
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: should begin with https:// for SASL_SSL, unless its host is a "
            "loopback address",
        ),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", **SASL, **TOKENS},
            "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL: without effect, as SASL_MECHANISM is PLAIN",
        ),
        (
            {"SECURITY_PROTOCOL": "SASL_PLAINTEXT", "SASL_MECHANISM": "AWS_MSK_IAM"},
            "SECURITY_PROTOCOL: should be SASL_SSL for AWS_MSK_IAM, got SASL_PLAINTEXT",
        ),
        (
            {"SECURITY_PROTOCOL": "SASL_SSL", "SASL_MECHANISM": "AWS_MSK_IAM", **SASL},
            "SASL_USERNAME and SASL_PASSWORD: without effect, as SASL_MECHANISM is AWS_MSK_IAM",
        ),
        ({"SSL_CAFILE": __file__}, "SSL_CAFILE: without effect, as SECURITY_PROTOCOL is PLAINTEXT"),
        (
            {"SECURITY_PROTOCOL": "SSL", "SSL_KEYFILE": __file__},
            "SSL_KEYFILE: without effect, as SSL_CERTFILE is not set",
        ),
        ({"SECURITY_PROTOCOL": "SSL", "SSL_CAFILE": "/none"}, "SSL_CAFILE: Path does not point to a file, got '/none'"),
    ],
)
def test_a_connection_that_is_not_what_it_seems_is_refused_by_the_variable(
    monkeypatch: pytest.MonkeyPatch, kafka: dict[str, str], problem: str
) -> None:
    message = error_of(monkeypatch, **{f"FOLDTUNE_KAFKA__{name}": value for name, value in kafka.items()})
    assert message.replace("FOLDTUNE_KAFKA__", "") == f"Invalid settings: {problem}"
    assert f"FOLDTUNE_KAFKA__{problem.partition(':')[0].partition(' ')[0]}" in message
    assert "hunter2" not in message


@pytest.mark.parametrize(
    ("protocol", "url"),
    [
        ("SASL_SSL", "https://issuer.example.com/token"),
        ("SASL_SSL", "http://localhost:8080/token"),
        ("SASL_SSL", "http://127.0.0.1/token"),
        ("SASL_SSL", "http://[::1]:8080/token"),
        ("SASL_PLAINTEXT", "http://issuer.example.com/token"),
    ],
)
def test_the_secret_of_a_client_goes_to_the_authorization_server_as_privately_as_to_the_brokers(
    monkeypatch: pytest.MonkeyPatch, protocol: str, url: str
) -> None:
    connection = OAUTH | {"SECURITY_PROTOCOL": protocol, "SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL": url}
    for name, value in connection.items():
        monkeypatch.setenv(f"FOLDTUNE_KAFKA__{name}", value)
    assert load_settings.__wrapped__().kafka.sasl_oauthbearer_token_endpoint_url == url


def test_the_addresses_of_kubernetes_services_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"": "tcp://10.0.0.1:80", "_PROTO": "tcp", "_PORT": "80", "_ADDR": "10.0.0.1"}
    for service in ("FOLDTUNE", "FOLDTUNE_API", "FOLDTUNE_KAFKA"):
        service_port = {f"{service}_SERVICE_{name}": "80" for name in ("HOST", "PORT", "PORT_HTTP")}
        links = {f"{service}_PORT_80_TCP{name}": value for name, value in address.items()}
        for name, value in (service_port | links | {f"{service}_PORT": "tcp://10.0.0.1:80"}).items():
            monkeypatch.setenv(name, value)
    assert load_settings.__wrapped__() == Settings()


def test_a_file_that_is_not_toml_is_named() -> None:
    for content in (b"[kafka", b"\xff"):
        Path("foldtune.toml").write_bytes(content)
        with pytest.raises(InvalidSettingsError, match=r"Invalid settings: foldtune\.toml: "):
            load_settings.__wrapped__()


def test_a_folder_has_the_operators_limits_unless_it_sets_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_SETS__MAX_AGE", "P30D")
    monkeypatch.setenv("FOLDTUNE_SETS__MAX_EXAMPLES", "500")
    monkeypatch.setenv(
        "FOLDTUNE_SETS__FOLDERS", '{"few": {"max_examples": 50}, "young": {"max_age": "P10D"}, "as is": {}}'
    )
    sets, bound = Settings().sets, SetLimits().max_bytes
    limits = {name: sets.of(name) for name in ("few", "young", "as is", "any other")}
    assert {name: (of.max_age.days, of.max_examples, of.max_bytes) for name, of in limits.items()} == {
        "few": (30, 50, bound),
        "young": (10, 500, bound),
        "as is": (30, 500, bound),
        "any other": (30, 500, bound),
    }


def test_a_child_process_takes_what_the_longest_topic_prefix_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "p" * 64)
    settings = load_settings.__wrapped__()
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert load_settings.__wrapped__().worker.app_id == settings.worker.app_id == f"{'p' * 64}foldtune"


def test_a_topic_prefix_also_names_the_application_and_the_keys_unless_they_are_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names() -> tuple[str, str]:
        return Settings().worker.app_id, Settings().s3.prefix

    assert names() == ("foldtune", "")
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "a-")
    assert names() == ("a-foldtune", "a-")
    monkeypatch.setenv("FOLDTUNE_S3", '{"prefix": ""}')
    assert names() == ("a-foldtune", "")
    monkeypatch.setenv("FOLDTUNE_S3__PREFIX", "team/x-")
    monkeypatch.setenv("FOLDTUNE_WORKER__APP_ID", "foldtune")
    assert names() == ("foldtune", "team/x-")


@pytest.mark.parametrize("prefix", ["/a", "a//b", "../a", "a b", "a/../b"])
def test_a_prefix_of_keys_is_a_plain_path(monkeypatch: pytest.MonkeyPatch, prefix: str) -> None:
    assert "FOLDTUNE_S3__PREFIX" in error_of(monkeypatch, FOLDTUNE_S3__PREFIX=prefix)


def test_a_child_process_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_KAFKA__SECURITY_PROTOCOL", "SASL_SSL")
    monkeypatch.setenv("FOLDTUNE_KAFKA__SASL_USERNAME", "me")
    monkeypatch.setenv("FOLDTUNE_KAFKA__SASL_PASSWORD", "hunter2")
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "a-")
    monkeypatch.setenv("FOLDTUNE_TRAINER__BASE_MODEL", "file:///models/x")
    monkeypatch.setenv("FOLDTUNE_SETS__FOLDERS", '{"f": {"max_examples": 50}}')
    settings = Settings()
    monkeypatch.delenv("FOLDTUNE_KAFKA__SASL_PASSWORD")
    monkeypatch.delenv("FOLDTUNE_SETS__FOLDERS")
    monkeypatch.delenv("FOLDTUNE_TRAINER__BASE_MODEL")
    for name, value in settings_environment(settings).items():
        monkeypatch.setenv(name, value)
    assert Settings() == settings
