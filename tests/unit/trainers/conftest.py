"""A small random BERT with a real tokenizer, and small datasets."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from transformers import BertConfig, BertModel

from foldtune.events import now
from foldtune.snapshot_schema import DOCUMENTS, EXAMPLES
from trainers.data.dataset import Dataset, build_dataset
from trainers.model.base_models import packaged_minilm_folder

Tables = tuple[pa.Table, pa.Table]


def example(
    question: str,
    positive: str | None,
    *,
    strength: float = 1.0,
    negatives: tuple[str, ...] = (),
    label: str = "cited",
) -> Any:
    """A row of the examples table; ``ID=TEXT`` is a passage whose text the log carried."""
    return {
        "log_id": question,
        "occurred_at": now(),
        "folder_id": "f",
        "agent_id": "a",
        "conversation_id": None,
        "question": question,
        "positive": passage(positive) if positive else None,
        "label": label if positive else "disliked",
        "strength": strength,
        "negatives": [passage(negative) for negative in negatives],
    }


def passage(name: str) -> dict[str, str | None]:
    document_id, _, text = name.partition("=")
    return {"folder_id": "f", "document_id": document_id, "text": text or None}


def make_tables(examples: list[Any], documents: dict[str, str]) -> Tables:
    """Tables of a snapshot, of rows made by ``example`` and of documents by their ids."""
    rows = [{"folder_id": "f", "document_id": name, "title": "", "text": text} for name, text in documents.items()]
    return pa.Table.from_pylist(examples, EXAMPLES), pa.Table.from_pylist(rows, DOCUMENTS)


@pytest.fixture(scope="session")
def tables() -> Callable[..., Tables]:
    """``make_tables``."""
    return make_tables


@pytest.fixture(autouse=True)
def no_gpu_unless_marked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only on a CPU are sums always computed in the same order."""
    if request.node.get_closest_marker("gpu") is None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32 throughout, even where the CPU has bfloat16, for comparisons to the last digits."""
    use_compute_dtype(monkeypatch, torch.float32)


def use_compute_dtype(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """As on hardware that computes in ``dtype``; it may be emulated."""
    monkeypatch.setattr("trainers.model.encoder.compute_dtype", lambda *_: dtype)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of three random layers, 32 wide, with the tokenizer of MiniLM."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        shutil.copy(packaged_minilm_folder() / name, folder / name)
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def small_dataset(tables: Callable[..., Tables]) -> Dataset:
    """40 questions, each with its document, and 10 distractors."""
    names = [f"{one}{two}" for one in ("red", "blue", "green", "old", "new") for two in "abcdefghij"]
    documents = {name: f"{name} is what {name} does " + "and more " * (index % 7) for index, name in enumerate(names)}
    rows = [example(f"where is {name} {index}", name) for index, name in enumerate(names[:40])]
    return build_dataset(*tables(rows, documents))
