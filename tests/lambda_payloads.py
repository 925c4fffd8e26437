"""Payloads of AWS Lambda in the shapes of its documentation."""

import base64
import time
from collections.abc import Iterable
from typing import Any, NamedTuple


class Context:
    """An invocation with so many seconds left."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def get_remaining_time_in_millis(self) -> int:
        return int((self.end - time.monotonic()) * 1000)


class Record(NamedTuple):
    """A record on Kafka."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def kafka_payload(records: Iterable[Record], source: str = "SelfManagedKafka") -> dict[str, Any]:
    """Records as an event source mapping delivers them."""
    grouped: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        grouped.setdefault(f"{record.topic}-{record.partition}", []).append(
            {
                "topic": record.topic,
                "partition": record.partition,
                "offset": record.offset,
                "timestamp": 1545084650987,
                "timestampType": "CREATE_TIME",
                "key": _base64(record.key),
                "value": _base64(record.value),
                "headers": [{"traceparent": [48, 48, -61, 45]}],
            }
        )
    source_fields: dict[str, Any] = {"bootstrapServers": "b-1.example:9096,b-2.example:9096"}
    if source == "aws:kafka":
        source_fields["eventSourceArn"] = "arn:aws:kafka:us-east-1:123456789012:cluster/foldtune/0f3b8e06-1"
    return {"eventSource": source, **source_fields, "records": grouped}


def http_payload(
    route: str, body: str | None = None, claims: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A call of an HTTP API, payload version 2.0."""
    method, _, path = route.partition(" ")
    authorizer = {} if claims is None else {"authorizer": {"jwt": {"claims": claims, "scopes": None}}}
    return {
        "version": "2.0",
        "routeKey": route,
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "http": {"method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "192.0.2.1"},
            "requestId": "id",
            "routeKey": route,
            "stage": "$default",
            **authorizer,
        },
        "isBase64Encoded": False,
        **({} if body is None else {"body": body}),
        **more,
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()
