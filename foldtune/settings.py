"""All settings, read from the environment (``FOLDTUNE_…``) and from ``foldtune.toml``; the environment wins.

Nested fields take a double underscore: ``FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS``. A section or a list may be given as JSON.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta
from difflib import get_close_matches
from enum import StrEnum
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, get_args
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FilePath,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from foldtune.bounds import Bounds
from foldtune.durations import Duration
from foldtune.errors import InvalidSettingsError
from foldtune.events import BUCKET, MODEL_URI, ModelReference
from foldtune.knobs import FolderId, ModelName
from foldtune.policy import MAX_RULES, Rule, check_rules
from foldtune.reasons import Location, field_of, invalid_fields

ENV_PREFIX = "FOLDTUNE_"
# Kubernetes gives each pod the addresses of its namespace's services, foldtune-api for example, as variables.
_SERVICE_LINK = re.compile(
    r"\w+_(service_host|service_port(_\w+)?|port_\d+_(tcp|udp|sctp)_(proto|port|addr))=.*"
    r"|\w+_port(_\d+_(tcp|udp|sctp))?=(tcp|udp|sctp)://.*"
)
SETTINGS_FILE = "foldtune.toml"
DEFAULT_APP_ID = "foldtune"
LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]
Port = Annotated[int, Field(ge=1, le=65535)]


class Section(BaseModel):
    """A group of settings; an unknown name in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class KafkaSettings(Section):
    """Connection of every Kafka client, and the layout of the topics."""

    bootstrap_servers: str = "127.0.0.1:9092"
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "AWS_MSK_IAM"] = "PLAIN"
    # With OAUTHBEARER id and secret of the client at the authorization server.
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    sasl_oauthbearer_token_endpoint_url: Annotated[str, Field(pattern=r"^https?://\S+$")] | None = None
    sasl_oauthbearer_scope: str | None = None
    ssl_cafile: FilePath | None = None
    ssl_certfile: FilePath | None = None
    ssl_keyfile: FilePath | None = None
    ssl_key_password: SecretStr | None = None
    # ARNs in AWS Secrets Manager, the same as Lambda's event source mapping has; read by functions and trainings.
    secret_arn: str | None = None
    ca_secret_arn: str | None = None
    # Tells installations on the same brokers and in the same bucket apart; worker.app_id and s3.prefix begin with it.
    topic_prefix: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{0,64}$")] = ""
    partitions: Annotated[int, Field(ge=1, le=1024)] = 4
    replication_factor: Annotated[int, Field(ge=1, le=16)] = 1
    # The partitioner of all producers of logs, documents and feedback. With murmur2 workers reject what is not in the
    # partition of its folder; with another they cannot tell, and feedback beside the partition of its log does nothing.
    partitioner: Literal["murmur2", "other"] = "murmur2"
    # Of topics that exist, made by the brokers or by an older version: what becomes of configuration that is not ours.
    topic_config: Literal["alter", "refuse", "ignore"] = "alter"

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        """What would have no effect is refused too: whoever sets it believes the connection to be what it is not."""
        protocol, mechanism = self.security_protocol, self.sasl_mechanism
        sasl, oauth = protocol.startswith("SASL"), mechanism == "OAUTHBEARER"
        password, token = ("sasl_username", "sasl_password"), ("sasl_oauthbearer_token_endpoint_url",)
        client = (*token, "sasl_oauthbearer_scope")
        files = ("ssl_cafile", "ssl_certfile", "ssl_keyfile", "ssl_key_password")
        # Of each kind of settings, when it has an effect, and what keeps it from having one.
        for fields, used, by in (
            ((*password, *client), sasl, ("security_protocol", protocol)),
            (password, mechanism != "AWS_MSK_IAM", ("sasl_mechanism", mechanism)),
            (client, oauth, ("sasl_mechanism", mechanism)),
            (files, protocol.endswith("SSL"), ("security_protocol", protocol)),
            (("ssl_keyfile", "ssl_key_password"), self.ssl_certfile is not None, ("ssl_certfile", "")),
        ):
            if found := [field for field in fields if getattr(self, field) is not None and not used]:
                msg = f"{_variables(found)}: without effect, as {_variables(by[:1])} is {by[1] or 'not set'}"
                raise ValueError(msg)
        needed = (*(() if self.secret_arn or mechanism == "AWS_MSK_IAM" else password), *(token if oauth else ()))
        if sasl and (missing := [field for field in needed if getattr(self, field) is None]):
            msg = f"{_variables(missing)}: needed for {protocol} with {mechanism}"
            raise ValueError(msg)
        if mechanism == "AWS_MSK_IAM" and protocol != "SASL_SSL":
            msg = f"{_variables(['security_protocol'])}: should be SASL_SSL for AWS_MSK_IAM, got {protocol}"
            raise ValueError(msg)
        endpoint = self.sasl_oauthbearer_token_endpoint_url
        if protocol == "SASL_SSL" and endpoint and not _is_private(endpoint):
            msg = f"{_variables(token)}: should begin with https:// for SASL_SSL, unless its host is a loopback address"
            raise ValueError(msg)
        return self


def _is_private(url: str) -> bool:
    """Whether nobody on the network sees what is sent there."""
    address = urlsplit(url)
    if address.scheme == "https" or address.hostname == "localhost":
        return True
    try:
        return ip_address(address.hostname or "").is_loopback
    except ValueError:
        return False


def _not_in_the_clear(url: str) -> str:
    if not _is_private(url):
        msg = "should begin with https://, unless its host is a loopback address"
        raise ValueError(msg)
    return url


_WebAddress = Annotated[str, Field(pattern=r"^https?://[^\s?#]+$", max_length=2000), AfterValidator(_not_in_the_clear)]


class S3Settings(Section):
    """The bucket. Without keys, boto3's default credential chain (role, profile, environment) applies."""

    bucket: Annotated[str, Field(pattern=BUCKET)] = "foldtune"
    # What all keys begin with; kafka.topic_prefix, if it is not set.
    prefix: Annotated[str, Field(pattern=r"^([A-Za-z0-9_-][A-Za-z0-9._-]*/)*[A-Za-z0-9._-]*$", max_length=200)] = ""
    endpoint_url: str | None = None
    region: str = "us-east-1"
    access_key_id: str | None = None
    secret_access_key: SecretStr | None = None
    # boto3's request_checksum_calculation: servers that do not know its checksums need the second.
    checksums: Literal["when_supported", "when_required"] = "when_supported"


_MaxAge = Annotated[Duration, Field(gt=timedelta(0), le=timedelta(days=36_525))]


class SetLimits(Section):
    """Retention of a folder's rolling training set: when any limit is exceeded, the oldest logs are dropped.

    Documents are the corpus, not examples: the newest version of each is retained until it is deleted.
    """

    max_age: _MaxAge = timedelta(days=365)
    max_examples: PositiveInt = 100_000
    max_bytes: PositiveInt = 256 * 1024 * 1024


class FolderLimits(Section):
    """A folder's own limits; those that are not set are those of all folders."""

    max_age: _MaxAge | None = None
    max_examples: PositiveInt | None = None
    max_bytes: PositiveInt | None = None


class Sets(SetLimits):
    """The limits of all training sets, with overrides by folder."""

    folders: dict[str, FolderLimits] = {}

    def of(self, folder_id: str) -> SetLimits:
        """A folder's limits."""
        own = self.folders.get(folder_id)
        return self.model_copy(update=own.model_dump(exclude_none=True)) if own else self


class LabelWeights(Section):
    """Weight of an example by the origin of its label; ``None`` excludes examples of that kind."""

    corrected: Annotated[float, Field(gt=0, le=1)] = 1.0
    liked: Annotated[float, Field(gt=0, le=1)] = 1.0
    cited: Annotated[float, Field(gt=0, le=1)] | None = 0.6
    retrieved: Annotated[float, Field(gt=0, le=1)] | None = None
    retrieved_min_score: float = 0.0


def _long_keys(keys: SecretStr) -> SecretStr:
    if any(len(key.strip()) < 16 for key in keys.get_secret_value().split(",")):
        msg = "should have keys of at least 16 characters, separated by commas"
        raise ValueError(msg)
    return keys


class WorkerSettings(Section):
    """The stream worker."""

    # Names the consumer group, the changelogs and the folder of the databases. If it is not set, kafka.topic_prefix
    # stands before it: room for the longest one.
    app_id: Annotated[str, Field(pattern=r"^[a-zA-Z0-9._-]{1,72}$")] = DEFAULT_APP_ID
    # Kafka's static membership: a restarted worker gets its partitions back before its old session expires.
    instance_id: str | None = None
    data_dir: Path = Path(".foldtune/worker")
    session_timeout: Annotated[Duration, Field(ge=timedelta(seconds=6), le=timedelta(minutes=5))] = timedelta(
        seconds=30
    )
    # Records per segment: larger blocks make fewer and larger segments.
    block_records: Annotated[int, Field(ge=1, le=10_000)] = 5_000
    snapshot_timeout: Duration = timedelta(minutes=15)
    # Older requests that are not known are rejected: a worker with another app_id reads all that were ever made.
    max_request_age: Annotated[Duration, Field(ge=timedelta(minutes=1), le=timedelta(days=3650))] = timedelta(days=7)
    # Without, a worker keeps the training sets and leaves requests to the workers of another app_id.
    handle_requests: bool = True
    catch_up_timeout: Duration = timedelta(minutes=2)
    min_examples: PositiveInt = 20
    # Replicas of each partition's state on other workers, which take over without recovery from the changelog.
    standby_replicas: Annotated[int, Field(ge=0, le=16)] = 0
    # Erasures are applied at once to what arrives and to snapshots; to what is stored, at most once in this time.
    erasure_interval: Annotated[Duration, Field(ge=timedelta(0), le=timedelta(days=7))] = timedelta(hours=1)
    # The figures of a folder that has changed are counted anew at most once in this time.
    stats_interval: Annotated[Duration, Field(ge=timedelta(milliseconds=100), le=timedelta(seconds=45))] = timedelta(
        seconds=30
    )
    # Keys of the digests by which erased subjects are kept: the newest first, separated by commas. A key is removed
    # only together with the state, which another app_id builds anew.
    erasure_keys: Annotated[SecretStr, AfterValidator(_long_keys)] | None = None
    # Address of metrics and health checks; no server without a port, any free port (named in the log) with 0.
    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None


class PolicyRule(Rule):
    """A rule of a model's policy; several rules of one model are tried in the order of the list, and need names."""

    model: ModelName

    @property
    def rule(self) -> Rule:
        """The rule by itself, as a policy has it."""
        return Rule.model_validate(self.model_dump(exclude={"model"}))


class PolicySettings(Section):
    """Automatic retraining, where ``foldtune policy set`` has not said otherwise; off without rules."""

    rules: Annotated[tuple[PolicyRule, ...], Field(max_length=1000)] = ()
    interval: Annotated[Duration, Field(ge=timedelta(milliseconds=100), le=timedelta(hours=1))] = timedelta(seconds=10)

    @model_validator(mode="after")
    def _named(self) -> Self:
        for model in {rule.model for rule in self.rules}:
            of_model = tuple(rule for rule in self.rules if rule.model == model)
            try:
                check_rules(of_model)
            except ValueError as error:
                msg = f"rules of the model {model!r}: {error}"
                raise ValueError(msg) from None
            if len(of_model) > MAX_RULES:
                msg = f"rules of the model {model!r}: there are {len(of_model)}, at most {MAX_RULES}"
                raise ValueError(msg)
        return self

    def rules_of(self, model: str) -> tuple[Rule, ...]:
        """The rules of a model, in order."""
        return tuple(rule.rule for rule in self.rules if rule.model == model)


def _reference(value: object) -> object:
    """A model reference given as plain text is its URI."""
    return {"uri": value} if isinstance(value, str) else value


class TrainerSettings(Section):
    """The training job and its launcher."""

    base_model: Annotated[ModelReference, BeforeValidator(_reference)] = ModelReference(
        uri="hf://sentence-transformers/all-MiniLM-L6-v2", revision="1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
    )
    # file:// models are read only from below these folders: a request must not be able to read any file.
    model_folders: tuple[Path, ...] = ()
    work_dir: Path = Path(".foldtune/jobs")
    max_duration: Duration = timedelta(hours=12)
    max_attempts: Annotated[int, Field(ge=1, le=10)] = 2
    # At most this much training is lost with SIGKILL; SIGTERM loses no step.
    checkpoint_interval: Duration = timedelta(minutes=10)
    # US dollars for an hour of the machine that trains; model-ready then says what a model cost.
    hourly_price: Annotated[PositiveFloat, Field(le=10_000)] | None = None
    # A smaller gain of nDCG@10 is not worth that all documents are embedded again: no model is promoted for it.
    min_gain: Annotated[float, Field(ge=0, le=1)] = 0.005
    # No model is promoted that surely loses more nDCG@10 than this on general questions, or on folders that its request
    # does not name.
    max_loss: Annotated[float, Field(ge=0, le=1)] = 0.05
    # General questions of your own, on which forgetting is measured too: a file, or an object in the bucket (s3://…),
    # that is a JSON list of {"question": …, "passage": …}.
    general_questions: Annotated[str, Field(min_length=1, max_length=1200)] | None = None
    # Also export the model as model.onnx; needs the extra ``onnx``.
    onnx: bool = False
    # The role that a training assumes on AWS, with the tags ``model`` and ``request``: it may write what is of these.
    role_arn: str | None = None
    # TensorBoard logs, one folder per training; needs the extra ``tensorboard``.
    tensorboard_dir: Path | None = None


class BatchSettings(Section):
    """AWS Batch as the launcher of trainings, in the region of the bucket."""

    job_queue: str = "foldtune"
    job_definition: str = "foldtune-trainer"
    log_group: str = "/aws/batch/job"
    # Allowed instance types, and On-Demand prices in US dollars per hour; budgets assume the highest price.
    instance_types: tuple[str, ...] = ()
    hourly_prices: Annotated[dict[str, PositiveFloat], Field(min_length=1)] = {"g5.xlarge": 1.006}
    # Budget of one job (attempts x timeout x price), and of all jobs of a model in one month (UTC).
    max_job_dollars: PositiveFloat = 30.0
    max_month_dollars: PositiveFloat = 300.0
    # Budget of all jobs of all models in one month; none where it is not set.
    max_total_dollars: PositiveFloat | None = None

    @model_validator(mode="after")
    def _priced(self) -> Self:
        if unpriced := sorted(set(self.instance_types) - set(self.hourly_prices)):
            msg = f"should have a price for each of instance_types, and has none for {', '.join(unpriced)}"
            raise ValueError(msg)
        return self


class RequestSettings(Section):
    """What a request may ask for: workers reject any other, whoever wrote it."""

    # Names of models; empty for any.
    models: tuple[ModelName, ...] = ()
    # Addresses of base models, or beginnings of addresses that end with "/" (hf://ORG/, s3://BUCKET/PREFIX/); empty for
    # any. A model of the hub needs a full commit hash in any case.
    base_models: Annotated[tuple[Annotated[str, Field(pattern=MODEL_URI)], ...], Field(max_length=1000)] = ()


class ApprovalSettings(Section):
    """Models whose versions ``deploy``, ``subscribe`` and subscribers of the SDK wait to be approved."""

    # Names of models, or "*" for all. A version that was rejected is not deployed in any case.
    models: tuple[ModelName | Literal["*"], ...] = ()


class Role(StrEnum):
    """What a caller of the HTTP API may do; ``api/access.py`` says which route takes which."""

    VIEWER = "viewer"
    REQUESTER = "requester"
    APPROVER = "approver"
    OPERATOR = "operator"
    # Reads users' texts, and erases.
    PRIVACY = "privacy"


# Of tokens; asymmetric ones only: with an HMAC, whoever knows the provider's public key could sign.
TOKEN_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")


class Grant(Section):
    """Roles, of all models and folders or of the named ones."""

    roles: Annotated[tuple[Role, ...], Field(min_length=1)]
    models: Annotated[tuple[ModelName, ...], Field(min_length=1, max_length=1000)] | None = None
    folders: Annotated[tuple[FolderId, ...], Field(min_length=1, max_length=1000)] | None = None


class ClaimGrant(Grant):
    """What whoever has ``value`` in the roles' claim is granted."""

    value: Annotated[str, Field(min_length=1, max_length=256)]


class ApiSettings(Section):
    """The HTTP API: who may call it, and how often."""

    # Names by which it may be called, such as that of its ingress; localhost and all IP addresses need not be named.
    hosts: Annotated[tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,253}$")], ...], Field(max_length=1000)] = ()
    # Sign-in by the tokens of an OpenID Connect provider: its address, and what it writes into ``aud`` for this API.
    # Its keys are found by discovery, unless jwks_url names them.
    issuer: _WebAddress | None = None
    audience: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    jwks_url: _WebAddress | None = None
    # How far this clock and the provider's may differ.
    leeway: Annotated[Duration, Field(ge=timedelta(0), le=timedelta(minutes=5))] = timedelta(seconds=30)
    # The claim with the caller's roles or groups; a dot leads into an object ("realm_access.roles").
    roles_claim: Annotated[str, Field(min_length=1, max_length=256)] = "roles"
    # What its values grant; without grants, a value that is the name of a role grants that role.
    grants: Annotated[tuple[ClaimGrant, ...], Field(max_length=1000)] = ()
    # Sign-in by tokens from a file, for small set-ups: [{"name": …, "sha256": …, "roles": […]}, …].
    tokens_file: FilePath | None = None
    # Per caller and replica.
    requests_per_minute: Annotated[int, Field(ge=1, le=1_000_000)] = 600
    # Also find, for the questions of previews, hard negatives that a training would mine: by trainer.base_model, in a
    # process beside, which takes up to 3 GiB and two minutes. Needs the extra ``trainers``.
    mine_previews: bool = False
    # Origins whose pages may call it from a browser; none by default.
    cors_origins: Annotated[
        tuple[Annotated[str, Field(pattern=r"^https?://[A-Za-z0-9._:-]+$")], ...], Field(max_length=100)
    ] = ()
    # Prometheus metrics; no server without a port.
    metrics_host: str = "127.0.0.1"
    metrics_port: Port | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.issuer is None) != (self.audience is None):
            msg = "api.issuer and api.audience go together"
            raise ValueError(msg)
        if self.jwks_url and not self.issuer:
            msg = "api.jwks_url is without effect, as api.issuer is not set"
            raise ValueError(msg)
        return self

    def role_values(self, claims: Mapping[str, Any]) -> frozenset[str]:
        """The caller's roles or groups: the values of ``roles_claim``."""
        # A name may have dots of its own, as in "https://example.com/roles".
        value: Any = claims.get(self.roles_claim)
        if value is None:
            value = claims
            for part in self.roles_claim.split("."):
                value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str):
            # OAuth's form of a list; API Gateway writes a list as "[a b]".
            value = value.removeprefix("[").removesuffix("]").replace(",", " ").split()
        values = value if isinstance(value, list | tuple) else ()
        return frozenset(item for item in values if isinstance(item, str))

    @property
    def has_sign_in(self) -> bool:
        """Whether callers are known by a token."""
        return self.issuer is not None or self.tokens_file is not None


class ConsoleSettings(Section):
    """The console, which ``foldtune api --console`` serves: how people sign in with a browser."""

    # Its address as browsers see it, without a path; the provider leads back to URL/console/signed-in.
    url: (
        Annotated[
            str, Field(pattern=r"^https?://[A-Za-z0-9.:\[\]-]+$", max_length=500), AfterValidator(_not_in_the_clear)
        ]
        | None
    ) = None
    # As which it is registered at api.issuer; without one people sign in with a token of api.tokens_file.
    client_id: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    # Without one it is a public client, which PKCE alone protects.
    client_secret_file: FilePath | None = None
    scopes: Annotated[str, Field(pattern=r"^openid( [!#-\[\]-~]+)*$", max_length=1000)] = "openid profile"
    # Signs the sessions: 32 random bytes or more, the same for all replicas.
    session_key_file: FilePath | None = None
    session_lifetime: Annotated[Duration, Field(ge=timedelta(minutes=1), le=timedelta(days=7))] = timedelta(hours=8)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.client_id and not self.url:
            msg = "console.client_id needs console.url, to which the provider leads back"
            raise ValueError(msg)
        return self


class NoticeType(StrEnum):
    """What webhooks are told."""

    COMPLETED = "completed"
    # By the gate.
    NOT_PROMOTED = "not_promoted"
    FAILED = "failed"
    REJECTED = "rejected"
    # Of a policy's rule: its trainings or dollars of the month.
    BUDGET_REACHED = "budget_reached"
    QUALITY_FELL = "quality_fell"


class Webhook(Section):
    """An address that notices are posted to, signed."""

    # In logs and metrics.
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    # Whoever knows the address of some services may write there: it is never shown.
    url: SecretStr
    # The key of the signatures: 24 bytes or more, or whsec_ and base64, as the Standard Webhooks specification has it.
    secret_file: FilePath
    notices: Annotated[frozenset[NoticeType], Field(min_length=1)] = frozenset(NoticeType)
    # Names of models; empty for all.
    models: tuple[ModelName, ...] = ()
    # Whether the address may be in a private network or this machine, and http.
    private: bool = False

    @model_validator(mode="after")
    def _address(self) -> Self:
        try:
            url = urlsplit(self.url.get_secret_value())
            port = url.port
        except ValueError:
            url, port = urlsplit(""), 0
        if url.scheme not in {"https", "http"} or not url.hostname or port == 0 or url.username is not None:
            msg = "url must be https://HOST/…, without a user name"
            raise ValueError(msg)
        if url.scheme == "http" and not self.private:
            msg = "url must begin with https://, unless private is true"
            raise ValueError(msg)
        return self


def _distinct(webhooks: tuple[Webhook, ...]) -> tuple[Webhook, ...]:
    names = [webhook.name for webhook in webhooks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        msg = f"two webhooks have the name {twice[0]}"
        raise ValueError(msg)
    return webhooks


class NotificationSettings(Section):
    """Webhooks, which ``foldtune notify`` serves."""

    webhooks: Annotated[tuple[Webhook, ...], Field(max_length=100), AfterValidator(_distinct)] = ()
    # How long a notice is tried again, from when it was read first.
    retry_for: Annotated[Duration, Field(gt=timedelta(0), le=timedelta(days=7))] = timedelta(hours=6)
    # Prometheus metrics; no server without a port.
    metrics_host: str = "127.0.0.1"
    metrics_port: Port | None = None


class ScheduleSettings(Section):
    """Models that the scheduled function requests; the time is set in EventBridge.

    Workers that have it too take requests of the schedule for these only.
    """

    models: tuple[ModelName, ...] = ()


_S = TypeVar("_S", bound=Section)


def _with(section: _S, **derived: str) -> _S:
    """The section with values that still count as not set."""
    return cast(_S, type(section).model_construct(section.model_fields_set, **dict(section) | derived))


class Settings(BaseSettings):
    """All settings."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        toml_file=SETTINGS_FILE,
        extra="forbid",
        frozen=True,
    )

    kafka: KafkaSettings = KafkaSettings()
    s3: S3Settings = S3Settings()
    bounds: Bounds = Bounds()
    sets: Sets = Sets()
    strengths: LabelWeights = LabelWeights()
    worker: WorkerSettings = WorkerSettings()
    policy: PolicySettings = PolicySettings()
    trainer: TrainerSettings = TrainerSettings()
    batch: BatchSettings = BatchSettings()
    requests: RequestSettings = RequestSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    approval: ApprovalSettings = ApprovalSettings()
    api: ApiSettings = ApiSettings()
    console: ConsoleSettings = ConsoleSettings()
    notifications: NotificationSettings = NotificationSettings()
    log_level: LogLevel = "INFO"

    @model_validator(mode="after")
    def _isolated(self) -> Self:
        """Have what is named after the topics' prefix begin with it, unless it was set."""
        prefix = self.kafka.topic_prefix
        if "app_id" not in self.worker.model_fields_set:
            object.__setattr__(self, "worker", _with(self.worker, app_id=f"{prefix}{DEFAULT_APP_ID}"))
        if "prefix" not in self.s3.model_fields_set:
            object.__setattr__(self, "s3", _with(self.s3, prefix=prefix))
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Precedence: arguments, the environment, the file."""
        return init_settings, _Environment(settings_cls), TomlConfigSettingsSource(settings_cls)


class _Environment(EnvSettingsSource):
    """The environment, where text that is not JSON is left to validation, whose errors name the variable.

    So are variables of no setting, which pydantic-settings ignores: as in the file, a misspelt one is an error.
    """

    def __call__(self) -> dict[str, Any]:
        unknown = {
            name.removeprefix(self.env_prefix.lower()): value
            for name, value in self.env_vars.items()
            if name.startswith(self.env_prefix.lower()) and not _SERVICE_LINK.fullmatch(f"{name}={value}")
        }
        for field_name, field in self.settings_cls.model_fields.items():
            unknown.pop(field_name, None)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                # What is unknown in a section is validated with it.
                unknown = {name: value for name, value in unknown.items() if not name.startswith(f"{field_name}__")}
        return super().__call__() | unknown

    def explode_env_vars(self, field_name: str, field: FieldInfo, env_vars: Mapping[str, str | None]) -> dict[str, Any]:
        # A section's own variable first: the variables of its fields are merged into it, not replaced by it.
        return super().explode_env_vars(field_name, field, dict(sorted(env_vars.items())))

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        try:
            return super().decode_complex_value(field_name, field, value)
        except ValueError:
            return _reference(value) if field and field.annotation is ModelReference else value


@cache
def load_settings() -> Settings:
    """The process's settings, read once.

    Raises:
        InvalidSettingsError: settings are unknown or out of bounds; each is named with its variable.
    """
    try:
        return Settings()
    except ValidationError as error:
        # Without the cause, whose text contains the values of secrets.
        raise InvalidSettingsError("; ".join(_explanations(error))) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidSettingsError(f"{SETTINGS_FILE}: {error}") from error


def _explanations(error: ValidationError) -> Iterator[str]:
    """One line for each invalid setting: its variable, what is expected, and its value unless that may be secret."""
    for location, reason, details in invalid_fields(error):
        kind, value = _type_of(location), details["input"]
        match details["type"]:
            case "extra_forbidden":
                expected = f"unknown setting{_suggestion(location)}"
            case "model_type" if kind is not None:
                first = _variable((*location, next(iter(kind.model_fields))))
                expected = f"Input should be a section, as JSON or as one variable per field ({first}, …)"
            case "tuple_type":
                expected = "Input should be a list, as JSON"
            case "dict_type":
                expected = "Input should be an object, as JSON"
            case _:
                expected = reason
        shown = kind is not None and isinstance(value, str | int | float) and not _holds_secret(kind)
        source = "" if reason.startswith(ENV_PREFIX) else f"{_source(location)}: "
        yield f"{source}{expected}{f', got {value!r:.100}' if shown else ''}"


def _source(location: Location) -> str:
    """Where a setting was given: its variable, those of its fields or that of its section, else the file."""
    variables = {name.upper() for name in os.environ}
    if fields := sorted(name for name in variables if name.startswith(f"{_variable(location)}__")):
        return ", ".join(fields)
    for length in range(len(location), 0, -1):
        if (variable := _variable(location[:length])) in variables:
            return variable if length == len(location) else f"{variable}, {field_of(location)}"
    return f"{SETTINGS_FILE}, {field_of(location)}"


def _suggestion(location: Location) -> str:
    if any(isinstance(part, int) for part in location):
        # Of an item of a list: its fields are no settings of their own.
        fields = getattr(_model_of_item(location[:-1]), "model_fields", {})
        return "".join(f", did you mean {name}?" for name in get_close_matches(str(location[-1]), fields, n=1))
    known = {"__".join(map(str, other)): other for other in _locations(Settings)}
    for nearest in get_close_matches("__".join(map(str, location)), known, n=1):
        name = field_of if _source(location).startswith(SETTINGS_FILE) else _variable
        return f", did you mean {name(known[nearest])}?"
    return ""


def _model_of_item(location: Location) -> Any:
    kind: Any = Settings
    for part in location:
        if isinstance(part, str):
            field = getattr(kind, "model_fields", {}).get(part)
            kind = _model_in(field.annotation) if field else None
    return kind


def _model_in(kind: Any) -> Any:
    """The model that a list is of, or the model itself."""
    return kind if hasattr(kind, "model_fields") else next(filter(None, map(_model_in, get_args(kind))), None)


def _locations(kind: Any, prefix: Location = ()) -> Iterator[Location]:
    for name, field in getattr(kind, "model_fields", {}).items():
        yield (*prefix, name)
        yield from _locations(field.annotation, (*prefix, name))


def _variable(location: Location) -> str:
    return f"{ENV_PREFIX}{'__'.join(map(str, location)).upper()}"


def _variables(kafka_fields: Iterable[str]) -> str:
    return " and ".join(_variable(("kafka", field)) for field in kafka_fields)


def _type_of(location: Location) -> Any:
    """The annotation of a setting; ``None`` for an unknown one, and inside lists and objects."""
    kind: Any = Settings
    for name in location:
        if (field := getattr(kind, "model_fields", {}).get(name)) is None:
            return None
        kind = field.annotation
    return kind


def _holds_secret(kind: Any) -> bool:
    fields = getattr(kind, "model_fields", {}).values()
    parts = (*get_args(kind), *(field.annotation for field in fields))
    return kind is SecretStr or any(_holds_secret(part) for part in parts)


def environment_without_settings() -> dict[str, str]:
    """This process's environment without the variables of settings, for a child process that gets its own."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith(ENV_PREFIX)}


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as environment variables for a child process, with secrets; one JSON object per section."""
    return {_variable((name,)): _text(getattr(settings, name)) for name in type(settings).model_fields}


def _text(value: object) -> str:
    if not isinstance(value, BaseModel):
        return str(value)
    secrets = {
        name: secret.get_secret_value()
        for name in type(value).model_fields
        if isinstance(secret := getattr(value, name), SecretStr)
    }
    return json.dumps(value.model_dump(mode="json", exclude_none=True) | secrets)
