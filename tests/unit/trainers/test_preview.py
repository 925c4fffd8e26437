"""What is mined for the questions of a preview: what a training would mine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foldtune.events import ModelReference
from foldtune.knobs import DatasetKnobs
from foldtune.settings import Settings, TrainerSettings
from foldtune.testing import MemoryObjectStore
from trainers.data.dataset import build_dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import NegativeSampler
from trainers.errors import TooLittleDataError
from trainers.model.encoder import Encoder
from trainers.preview import Asked, mine

from .conftest import Tables, example

WORDS = ("rates", "plans", "calls", "costs", "ports")
TEXTS = {f"d{number}": f"{word} of the {word} line" for number, word in enumerate(WORDS)}


def asked(tables: Tables, knobs: DatasetKnobs) -> Asked:
    """As the API writes it."""
    examples, documents = (table.to_pylist() for table in tables)
    rows = {"dataset": knobs.model_dump(), "examples": examples, "documents": documents}
    return Asked.model_validate_json(json.dumps(rows, default=lambda moment: moment.isoformat()))


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> Settings:
    base = ModelReference(uri=tiny_folder.as_uri())
    return Settings(trainer=TrainerSettings(base_model=base, model_folders=(tiny_folder,), work_dir=tmp_path))


def test_what_is_taken_is_what_a_training_takes(
    tables: Callable[..., Tables], settings: Settings, tiny_folder: Path
) -> None:
    rows: list[Any] = [
        example("what of rates?", "d0", negatives=("d1",)),
        example("what of costs?", "d3"),
        example("what of ports?", "d4=ports"),
    ]
    made, knobs = tables(rows, TEXTS), DatasetKnobs(hard_negatives=3, exclusion_threshold=0.9)
    found = mine(asked(made, knobs), settings, MemoryObjectStore())
    dataset, encoder = build_dataset(*made), Encoder.load(tiny_folder, "cpu")
    queries = torch.from_numpy(encoder.encode(dataset.questions, "query"))
    passages = torch.from_numpy(encoder.encode(dataset.passages, "passage"))
    sampler = NegativeSampler(dataset, np.arange(3), WordSets.of(dataset.passages), knobs)
    hard = sampler.hard(queries, passages).passages
    assert found["documents"] == 5
    for told, taken, shown in zip(found["examples"], hard, (1, 0, 0), strict=True):
        # Those that were shown come first.
        mined = [dataset.passages[passage] for passage in taken[shown:] if passage >= 0]
        assert [candidate["text"] for candidate in told["candidates"] if candidate["taken"]] == mined
        for candidate in told["candidates"]:
            assert TEXTS[candidate["document_id"]] == candidate["text"]
            assert candidate["reason"] == "negative" or not candidate["taken"]


def test_too_little_to_search_is_told(tables: Callable[..., Tables], settings: Settings) -> None:
    one = tables([example("what?", "d0")], {"d0": "text"})
    with pytest.raises(TooLittleDataError, match="1 distinct documents"):
        mine(asked(one, DatasetKnobs()), settings, MemoryObjectStore())
