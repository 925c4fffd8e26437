"""What AWS Lambda hands to the handlers, as far as they use it. Properties that are not known here are ignored."""

from typing import Literal, Protocol

from pydantic import AwareDatetime, Base64Bytes, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from launchers.batch.batch_job import BatchJob


class Context(Protocol):
    """The invocation."""

    def get_remaining_time_in_millis(self) -> int:
        """How long it may still take."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, alias_generator=to_camel)


class KafkaRecord(_Part):
    """One record; without a value it is a tombstone. No event of foldtune has headers."""

    topic: str
    partition: int
    offset: int
    key: Base64Bytes | None = None
    value: Base64Bytes | None = None


class KafkaEvent(_Part):
    """Records by ``TOPIC-PARTITION``, from Amazon MSK or from brokers elsewhere."""

    event_source: Literal["aws:kafka", "SelfManagedKafka"]
    records: dict[str, tuple[KafkaRecord, ...]]


class StateChange(_Part):
    """A ``Batch Job State Change``."""

    detail: BatchJob


class ScheduledEvent(_Part):
    """A turn of a schedule; the same turn has the same time, however often it is delivered."""

    time: AwareDatetime


class _Jwt(_Part):
    claims: dict[str, object]


class _Authorizer(_Part):
    jwt: _Jwt | None = None


class _RequestContext(_Part):
    authorizer: _Authorizer = _Authorizer()


class HttpRequest(_Part):
    """A call of the HTTP API, in the payload's version 2.0."""

    route_key: str
    path_parameters: dict[str, str] | None = None
    body: str | None = None
    is_base64_encoded: bool = Field(False, alias="isBase64Encoded")
    request_context: _RequestContext = _RequestContext()

    @property
    def caller(self) -> str | None:
        """Whom the token was made out for; ``None`` where no authorizer has checked one."""
        jwt = self.request_context.authorizer.jwt
        if jwt is None:
            return None
        return str(jwt.claims.get("sub") or jwt.claims.get("client_id") or "unknown")[:256]
