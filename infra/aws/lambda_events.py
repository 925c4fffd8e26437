"""The payloads of AWS Lambda, as far as the handlers use them; unknown properties are ignored."""

import base64
from typing import Literal, Protocol

from pydantic import AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from launchers.batch.batch_job import BatchJob


class Context(Protocol):
    """The context of an invocation."""

    def get_remaining_time_in_millis(self) -> int:
        """Milliseconds until Lambda ends the invocation."""


class _Payload(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class KafkaRecord(_Payload):
    """One record; a tombstone has no value. Headers are left out: none of foldtune's events has any."""

    topic: str
    partition: int
    offset: int
    key: Base64Bytes | None = None
    value: Base64Bytes | None = None

    @property
    def position(self) -> dict[str, str | int]:
        """Where it is on Kafka, as fields of a log line."""
        return {"topic": self.topic, "partition": self.partition, "offset": self.offset}


class KafkaEvent(_Payload):
    """Records by ``TOPIC-PARTITION``, from Amazon MSK or self-managed brokers."""

    event_source: Literal["aws:kafka", "SelfManagedKafka"]
    records: dict[str, tuple[KafkaRecord, ...]]


class StateChange(_Payload):
    """A ``Batch Job State Change`` of EventBridge."""

    detail: BatchJob


class ScheduledEvent(_Payload):
    """One firing of a schedule; its redeliveries have the same ``time``."""

    time: AwareDatetime


class _Jwt(_Payload):
    claims: dict[str, object]


class _Authorizer(_Payload):
    jwt: _Jwt | None = None


class _Http(_Payload):
    method: str
    path: str


class _RequestContext(_Payload):
    http: _Http
    authorizer: _Authorizer = _Authorizer()


class HttpRequest(_Payload):
    """A call of the HTTP API, payload version 2.0."""

    route_key: str
    path_parameters: dict[str, str] | None = None
    query_string_parameters: dict[str, str] | None = None
    # Their names in lower case.
    headers: dict[str, str] = {}
    body: str | None = None
    is_base64_encoded: bool = Field(False, alias="isBase64Encoded")
    request_context: _RequestContext

    @property
    def claims(self) -> dict[str, object] | None:
        """What the token says; ``None`` where no authorizer has checked one."""
        jwt = self.request_context.authorizer.jwt
        return None if jwt is None else jwt.claims

    @property
    def route(self) -> str:
        """Method and path of the route, as ``api.access.RULES`` has them; ``$default`` of all that has none."""
        return self.route_key.replace("+}", "}")

    @property
    def method(self) -> str:
        """Of the call."""
        return self.request_context.http.method

    @property
    def path(self) -> str:
        """Of the call."""
        return self.request_context.http.path

    @property
    def parameters(self) -> dict[str, str]:
        """Of the path."""
        return self.path_parameters or {}

    @property
    def query(self) -> dict[str, str]:
        """The parameters behind the path."""
        return self.query_string_parameters or {}

    @property
    def content(self) -> bytes:
        """The body's bytes."""
        text = self.body or ""
        return base64.b64decode(text) if self.is_base64_encoded else text.encode()
