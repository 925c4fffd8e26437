"""The SDK, and the contract that all other packages build on: events, knobs, topics, settings.

Start with ``from foldtune import FoldtuneClient, ChatLog``. Names are imported on first use: ``import foldtune`` is
fast. This package imports no other one of the repository.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foldtune.client.client import FoldtuneClient
    from foldtune.errors import FoldtuneError
    from foldtune.events import (
        ChatLog,
        DocumentDeleted,
        DocumentUpserted,
        ErasureRequested,
        Feedback,
        FineTuneCancelled,
        FineTuneRequested,
        FineTuneStatus,
        ModelReady,
        ModelReference,
        Rating,
        RetrievedPassage,
        State,
        Verdict,
        now,
    )
    from foldtune.knobs import DataSelection, DatasetKnobs, TrainingKnobs, WeightKnobs
    from foldtune.settings import Settings, load_settings

__all__ = [
    "ChatLog",
    "DataSelection",
    "DatasetKnobs",
    "DocumentDeleted",
    "DocumentUpserted",
    "ErasureRequested",
    "Feedback",
    "FineTuneCancelled",
    "FineTuneRequested",
    "FineTuneStatus",
    "FoldtuneClient",
    "FoldtuneError",
    "ModelReady",
    "ModelReference",
    "Rating",
    "RetrievedPassage",
    "Settings",
    "State",
    "TrainingKnobs",
    "Verdict",
    "WeightKnobs",
    "load_settings",
    "now",
]

_MODULES = {
    "foldtune.client.client": ("FoldtuneClient",),
    "foldtune.errors": ("FoldtuneError",),
    "foldtune.knobs": ("DataSelection", "DatasetKnobs", "TrainingKnobs", "WeightKnobs"),
    "foldtune.settings": ("Settings", "load_settings"),
}
# All other names are in foldtune.events.
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULE_OF.get(name, "foldtune.events")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
