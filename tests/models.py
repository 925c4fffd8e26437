"""Small base models for tests, in the layouts that sentence-transformers reads."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def write_modules(
    folder: Path,
    pooling: str = "mean",
    *,
    normalize: bool = True,
    dimension: int = 32,
    max_seq_length: int | None = None,
    **config: Any,
) -> Path:
    """Pooling and Normalize behind the transformer in ``folder``; ``config`` is config_sentence_transformers.json."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if normalize else {})
    listed = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for index, (path, kind) in enumerate(kinds.items())
    ]
    mode = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}.get(pooling, pooling)
    write_json(folder / "modules.json", listed)
    write_json(folder / "1_Pooling/config.json", {"word_embedding_dimension": dimension, f"pooling_mode_{mode}": True})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_seq_length, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", config)
    return folder


def write_transformer(folder: Path, config: PretrainedConfig, tokenizer: Path, seed: int = 0) -> Path:
    """A transformer of random weights, with the tokenizer of another folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER:
        shutil.copy(tokenizer / name, folder / name)
    torch.manual_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder
