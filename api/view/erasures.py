"""Who has confirmed which erasure."""

from typing import Any

from foldtune.events import ErasureConfirmed


class ErasureTable:
    """The first confirmation of each partition, by erasure and the workers' ``app_id``."""

    def __init__(self) -> None:
        self._confirmed: dict[str, dict[str, dict[int, ErasureConfirmed]]] = {}

    def apply(self, record: Any) -> None:
        """Add a record of ``erasure-confirmations``; raises ``ValueError``."""
        event = ErasureConfirmed.model_validate_json(record.value)
        self._confirmed.setdefault(event.erasure_id, {}).setdefault(event.app_id, {}).setdefault(event.partition, event)

    def get(self, erasure_id: str) -> dict[str, dict[int, ErasureConfirmed]]:
        """The confirmations by ``app_id`` and partition."""
        return self._confirmed.get(erasure_id, {})
