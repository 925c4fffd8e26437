"""Prompts, truncation, pooling and normalization of a model: the configuration files of sentence-transformers.

These are ``modules.json``, ``N_Pooling/config.json``, ``sentence_bert_config.json`` and
``config_sentence_transformers.json``. A folder without ``modules.json`` is a plain transformer: mean pooling, then
normalization.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from trainers.errors import BadModelError

Pooling = Literal["mean", "cls", "lasttoken"]
TextKind = Literal["query", "passage"]

_LEGACY_POOLING: dict[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
}
# The names under which sentence-transformers looks up the prompt of a document, in this order.
_PASSAGE_PROMPTS = ("document", "passage", "corpus")


@dataclass(frozen=True)
class EncodingConfig:
    """What happens to a text before the transformer and to the hidden states after it."""

    pooling: Pooling = "mean"
    normalize: bool = True
    max_tokens: int | None = None
    lower_case: bool = False
    query_prompt: str = ""
    passage_prompt: str = ""

    def prompt(self, kind: TextKind) -> str:
        """The prefix of a text of this kind."""
        return self.query_prompt if kind == "query" else self.passage_prompt


def read_encoding_config(folder: Path) -> EncodingConfig:
    """Read the encoding configuration of a model folder.

    Raises:
        BadModelError: malformed JSON, or a module or pooling mode that is not supported.
    """
    if not (folder / "modules.json").exists():
        return EncodingConfig()
    modules = {_class_name(module): folder / module.get("path", "") for module in _read_json(folder / "modules.json")}
    unknown = sorted(set(modules) - {"Transformer", "Pooling", "Normalize"})
    if unknown or "Pooling" not in modules:
        raise BadModelError(
            f"modules.json: Pooling is required, beside Transformer and Normalize, found {sorted(modules)}"
        )
    transformer = _read_json(folder / "sentence_bert_config.json")
    query, passage = _prompts(_read_json(folder / "config_sentence_transformers.json"))
    return EncodingConfig(
        pooling=_pooling(_read_json(modules["Pooling"] / "config.json"), prompted=bool(query or passage)),
        normalize="Normalize" in modules,
        max_tokens=transformer.get("max_seq_length"),
        lower_case=bool(transformer.get("do_lower_case", False)),
        query_prompt=query,
        passage_prompt=passage,
    )


def write_encoding_config(encoding_config: EncodingConfig, folder: Path, *, dimension: int, max_tokens: int) -> None:
    """Write the files that ``read_encoding_config`` reads, and sentence-transformers since 2.3."""
    classes = ["Transformer", "Pooling", *(["Normalize"] if encoding_config.normalize else [])]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": "" if name == "Transformer" else f"{index}_{name}",
            "type": f"sentence_transformers.models.{name}",
        }
        for index, name in enumerate(classes)
    ]
    pooling = {key: mode == encoding_config.pooling for key, mode in _LEGACY_POOLING.items()}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": dimension, **pooling})
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_tokens, "do_lower_case": encoding_config.lower_case},
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": encoding_config.query_prompt, "document": encoding_config.passage_prompt},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if encoding_config.normalize else "dot",
        },
    )


def _pooling(config: dict[str, Any], *, prompted: bool) -> Pooling:
    if prompted and not config.get("include_prompt", True):
        raise BadModelError("1_Pooling/config.json: include_prompt = false is not supported")
    mode = config.get("pooling_mode")
    if mode is None:
        active = [key for key, on in config.items() if key.startswith("pooling_mode_") and on]
        mode = [_LEGACY_POOLING.get(key, key) for key in active] or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if mode not in _LEGACY_POOLING.values():
        raise BadModelError(f"1_Pooling/config.json: only mean, cls and lasttoken are supported, found {mode}")
    return cast(Pooling, mode)


def _prompts(config: dict[str, Any]) -> tuple[str, str]:
    prompts = config.get("prompts") or {}
    default = prompts.get(config.get("default_prompt_name"), "")
    passage = next((prompts[name] for name in _PASSAGE_PROMPTS if name in prompts), default)
    return prompts.get("query", default), passage


def _class_name(module: dict[str, Any]) -> str:
    return str(module.get("type", "")).rpartition(".")[2]


def _read_json(path: Path) -> Any:
    if not path.exists():
        return {}
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise BadModelError(f"{path.name}: {error}") from error


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n")
