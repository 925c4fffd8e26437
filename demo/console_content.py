"""What a console shows beside jobs: a policy, a dead letter, an erasure, and the audit of these."""

import time
from typing import Any

import httpx

from demo.pipeline import MODEL
from foldtune.kafka import Publisher
from foldtune.settings import Settings
from foldtune.topics import Topic

_PATIENCE_SECONDS = 30
_ERASED_USER = "user-007"
_RULES = [{"name": "growth", "new_examples": 500, "cooldown": "6h", "monthly_trainings": 20}]


def fill_console(api: str, settings: Settings) -> None:
    """Do by the API, and with a log that no worker can read, what fills the pages that a training leaves empty.

    Raises:
        httpx.HTTPError: the API has refused, or does not answer.
        PublishError: the brokers do not answer.
    """
    with Publisher(settings.kafka) as publisher:
        publisher.send_raw(Topic.CHAT_LOGS, b'{"type": "chat_log", "question": "a log without the rest"}', key=None)
    with httpx.Client(base_url=api, timeout=30) as client:
        known = client.get(f"/policies/{MODEL}")
        if known.status_code == httpx.codes.NOT_FOUND:
            _change(client, "PUT", f"/policies/{MODEL}", {"rules": _RULES, "comment": "trains as the agent is used"})
        _change(client, "POST", "/erasures", {"subject": "user", "subject_id": _ERASED_USER})
        # A worker rejects the log first.
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not client.get("/dead-letters").raise_for_status().json()["items"] and time.monotonic() < deadline:
            time.sleep(0.2)


def _change(client: httpx.Client, method: str, path: str, body: dict[str, Any]) -> None:
    client.request(method, path, json=body).raise_for_status()
