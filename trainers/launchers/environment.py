"""What a training process is given to know of its surroundings."""

import json
import os

from pydantic import BaseModel, SecretStr

from infra.settings import Settings
from trainers.allocator import ALLOCATOR_ENVIRONMENT

_PREFIX = "FOLDTUNE_"


def job_environment(settings: Settings) -> dict[str, str]:
    """This process's environment with exactly ``settings``, wherever they came from, and the allocator's options."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith(_PREFIX)}
    return inherited | ALLOCATOR_ENVIRONMENT | settings_environment(settings)


def settings_environment(settings: Settings) -> dict[str, str]:
    """The settings as the variables from which ``Settings()`` makes the same again; one JSON object a section."""
    return {f"{_PREFIX}{name.upper()}": _text(getattr(settings, name)) for name in type(settings).model_fields}


def _text(value: object) -> str:
    if not isinstance(value, BaseModel):
        return str(value)
    secrets = {
        name: secret.get_secret_value()
        for name in type(value).model_fields
        if isinstance(secret := getattr(value, name), SecretStr)
    }
    return json.dumps(value.model_dump(mode="json", exclude_none=True) | secrets)
