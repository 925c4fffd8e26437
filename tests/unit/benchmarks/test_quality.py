"""That the comparison of quality gives no side an advantage."""

import json
from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize

from benchmarks import quality
from benchmarks.quality import MAX_TOKENS, RECIPES, bounded_base
from benchmarks.retrieval import embed
from benchmarks.sentence_transformers_recipe import TrainingConfig, load_model
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.publishing.artifacts import write_model

# Most of them longer than what a side may read, although MiniLM itself reads 256 tokens.
TEXTS = ["a question of five words", *(f"number {n} " + "and some more words " * (15 * n) for n in range(6))]


@pytest.mark.slow
def test_every_side_reads_the_same_tokens_in_the_same_precision(tmp_path: Path) -> None:
    with bounded_base() as base:
        encoder = Encoder.load(base)
        assert encoder.max_tokens == SentenceTransformer(str(base), device="cpu").max_seq_length == MAX_TOKENS
        write_model(encoder, tmp_path)
        before, published = (embed(load_model(folder).encode_document, TEXTS) for folder in (base, tmp_path))
        ours = normalize(torch.from_numpy(encoder.encode(TEXTS)), dim=1)
    assert max(Encoder.load(packaged_minilm_folder()).tokenize(TEXTS).lengths) > MAX_TOKENS
    assert torch.equal(before, published)
    # Two texts of a batch may be padded differently, which in bfloat16 shows in the last of its eight bits.
    assert (ours - published).abs().max() < 2**-8


def test_what_is_chosen_for_one_recipe_is_used_for_those_without_a_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    choices = {
        "faq": {"st_plain": {"layers": 2, "learning_rate": 1e-4}, "st_mined_1": {"layers": None, "learning_rate": 2e-5}}
    }
    monkeypatch.setattr(quality, "CHOICES", tmp_path / "choices.json")
    assert {quality.chosen_config("faq", name, 0).learning_rate for name in RECIPES} == {5e-5}
    quality.CHOICES.write_text(json.dumps(choices))
    configs = {name: quality.chosen_config("faq", name, 3) for name in RECIPES}
    assert {name: config.learning_rate for name, config in configs.items()} == {
        name: 2e-5 if name == "st_mined_1" else 1e-4 for name in RECIPES
    }
    assert configs["st_plain_cached"] == TrainingConfig(2, 1e-4, batch_size=128, cached=True, seed=3)
