"""Tokenizing, pooling and embedding."""

import json
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from foldtune.texts import passage_text
from tests.models import write_modules
from trainers.errors import BadModelError
from trainers.model.encoder import Encoder


def test_embeddings_are_in_the_order_of_the_texts(tiny_folder: Path) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    texts = ["short", "a much longer text " * 30, "", "middle sized one"]
    seen: list[tuple[int, int]] = []
    together = encoder.encode(texts, batch_tokens=80, progress=lambda done, total: seen.append((done, total)))
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert seen[-1] == (4, 4)
    assert encoder.encode([]).shape == (0, 32)


def test_of_a_long_text_only_a_beginning_is_tokenized(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    preprocess, longest = encoder.model.preprocess, 0

    def count(texts: list[str], **options: Any) -> dict[str, Any]:
        nonlocal longest
        longest = max(longest, *map(len, texts))
        return dict(preprocess(texts, **options))

    monkeypatch.setattr(encoder.model, "preprocess", count)
    encoder.tokenize(["short", "words of a megabyte " * 50_000])
    assert longest <= 32 * encoder.max_tokens


@pytest.mark.parametrize(
    "text",
    [
        "words of a long text, " * 500,
        # Fewer tokens than characters lead to expect.
        " " * 9_000 + "after spaces",
        "x" * 5_000 + " " + "y" * 5_000 + " an unknown word is one token",
        "\u200b" * 3_000 + " " + "\u200b" * 3_000 + "behind",
        # No space to cut at.
        "中文" * 2_000,
        "x" * 9_000,
    ],
)
def test_the_beginning_of_a_text_has_its_tokens(text: str, tiny_folder: Path) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    for limit in (16, 64):
        whole = encoder.model.preprocess([text], max_length=limit)["input_ids"][0].tolist()
        assert encoder.tokenize(["short", text], max_tokens=limit).ids[-len(whole) :].tolist() == whole


def test_a_document_is_embedded_with_its_title() -> None:
    assert passage_text("Ferries", "They sail.") == "Ferries\nThey sail."
    assert passage_text("", "They sail.") == "They sail."


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pooling_equals_sentence_transformers(pooling: str, tiny_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    prompts = {"query": "find: "}
    write_modules(
        folder, pooling, normalize=pooling != "cls", max_seq_length=20, prompts=prompts, similarity_fn_name="dot"
    )
    texts = ["some words", "other " * 50]
    ours, theirs = Encoder.load(folder, "cpu"), SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode(texts), theirs.encode_document(texts), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"not a tensor " * 9),
        ("config.json", b"{"),
        ("config.json", b"[]"),
        ("tokenizer.json", b"{}"),
        ("modules.json", b"[1]"),
    ],
)
def test_unreadable_files_are_the_models_fault(name: str, content: bytes, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(BadModelError):
        Encoder.load(folder, "cpu")


def test_weights_of_another_shape_are_the_models_fault(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    weights = {name: tensor[:1].clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModelError):
        Encoder.load(folder, "cpu")


def model_with(tiny_folder: Path, folder: Path, config: dict[str, object]) -> Path:
    """A model with more in its config.json, and code beside it that leaves a trace when it runs."""
    shutil.copytree(tiny_folder, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | config))
    (folder / "code.py").write_text(f"open({str(folder / 'trace')!r}, 'w').close()")
    return folder


KERNELS = "somebody/kernels"


@pytest.mark.parametrize(
    "config",
    [
        {"attn_implementation": KERNELS},
        {"_attn_implementation": KERNELS},
        {"attn_implementation": {"": KERNELS}},
        {"attn_implementation": "flash_attention_2"},
        {"experts_implementation": KERNELS},
        {"auto_map": {"AutoModelForMaskedLM": "code.Model"}},
    ],
)
def test_a_models_config_does_not_choose_its_code(config: dict[str, object], tiny_folder: Path, tmp_path: Path) -> None:
    folder = model_with(tiny_folder, tmp_path / "model", config)
    usual, loaded = (Encoder.load(path, "cpu") for path in (tiny_folder, folder))
    assert loaded.transformer.config._attn_implementation == usual.transformer.config._attn_implementation
    np.testing.assert_array_equal(loaded.encode(["some words"]), usual.encode(["some words"]))
    assert not (folder / "trace").exists()


def test_quantization_and_adapters_are_refused_by_name(tiny_folder: Path, tmp_path: Path) -> None:
    quantized = model_with(tiny_folder, tmp_path / "quantized", {"quantization_config": {"quant_method": "fp8"}})
    with pytest.raises(BadModelError, match=r"quantization_config of config\.json is not supported"):
        Encoder.load(quantized, "cpu")
    adapter = model_with(tiny_folder, tmp_path / "adapter", {})
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "/etc"}')
    with pytest.raises(BadModelError, match="adapters are not supported"):
        Encoder.load(adapter, "cpu")


def renamed(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"0.auto_model.{name}": tensor for name, tensor in tensors.items()}


def without_layer_1(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in tensors.items() if "layer.1." not in name}


@pytest.mark.parametrize(
    ("change", "config", "reason"),
    [
        (renamed, {}, r"53 of 55 are missing, 55 unexpected"),
        (without_layer_1, {}, r"16 of 55 are missing, 0 unexpected"),
        (dict, {"num_hidden_layers": 5}, r"32 of 87 are missing, 0 unexpected"),
        (dict, {"num_hidden_layers": 2}, r"0 of 39 are missing, 16 unexpected"),
    ],
)
def test_weights_that_do_not_fit_are_refused_with_their_number(
    change: Any, config: dict[str, Any], reason: str, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = model_with(tiny_folder, tmp_path / "model", config)
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModelError, match=f"the weights do not fit config.json: {reason}"):
        Encoder.load(folder, "cpu")


def test_heads_for_other_tasks_and_a_missing_pooler_do_no_harm(tiny_folder: Path, tmp_path: Path) -> None:
    folder = model_with(tiny_folder, tmp_path / "model", {})
    tensors = load_file(folder / "model.safetensors")
    kept = {f"bert.{name}": tensor for name, tensor in tensors.items() if "pooler" not in name}
    head = {"cls.predictions.bias": tensors["pooler.dense.bias"]}
    save_file(kept | head, folder / "model.safetensors", {"format": "pt"})
    usual, loaded = (Encoder.load(path, "cpu") for path in (tiny_folder, folder))
    np.testing.assert_array_equal(loaded.encode(["some words"]), usual.encode(["some words"]))


def test_what_the_base_model_leaves_to_assume_is_said(tiny_folder: Path, tmp_path: Path) -> None:
    (assumed,) = Encoder.load(tiny_folder, "cpu").warnings()
    assert "no modules.json: mean pooling is assumed" in assumed
    folder = write_modules(model_with(tiny_folder, tmp_path / "model", {}), max_seq_length=4096)
    (wrong,) = Encoder.load(folder, "cpu").warnings()
    assert "says that it reads 4096 tokens, it can read 64" in wrong


@pytest.mark.parametrize("name", ["sentence_roberta_config.json", "sentence_bert_config.json"])
def test_the_length_is_read_where_sentence_transformers_keeps_it(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_modules(model_with(tiny_folder, tmp_path / "model", {}), max_seq_length=7)
    (folder / "sentence_bert_config.json").rename(folder / name)
    assert Encoder.load(folder, "cpu").max_tokens == 7
    # As sentence-transformers 6 saves it.
    (folder / name).write_text("{}")
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": 9}))
    assert Encoder.load(folder, "cpu").max_tokens == 9


def test_embeddings_are_not_cut_where_they_end_before(tiny_folder: Path, tmp_path: Path) -> None:
    folder = write_modules(model_with(tiny_folder, tmp_path / "model", {}), truncate_dim=4096)
    encoder = Encoder.load(folder, "cpu")
    assert encoder.dimension == encoder.encode(["a text"]).shape[1] == 32


def test_a_prompt_that_leaves_nothing_of_a_text_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = {"query": "find what answers this question here: "}
    folder = write_modules(model_with(tiny_folder, tmp_path / "model", {}), max_seq_length=9, prompts=prompts)
    with pytest.raises(BadModelError, match="the prompt of a query leaves none of the 9 tokens"):
        Encoder.load(folder, "cpu")


def test_weights_that_are_all_zero_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = model_with(tiny_folder, tmp_path / "model", {})
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModelError, match="its embeddings are all zero"):
        Encoder.load(folder, "cpu")


def test_prompts_of_other_names_are_used_and_kept(tiny_folder: Path, tmp_path: Path) -> None:
    prompts = {"s2p_query": "Query: ", "passage": "Passage: ", "classification": "c: "}
    folder = write_modules(model_with(tiny_folder, tmp_path / "model", {}), prompts=prompts)
    encoder = Encoder.load(folder, "cpu")
    assert (encoder.prompt("query"), encoder.prompt("passage")) == ("Query: ", "Passage: ")
    assert encoder.description()[:2] == [
        "Questions have the prompt `s2p_query`.",
        "Documents have the prompt `passage`.",
    ]


def test_a_gpu_without_memory_is_no_fault_of_the_model(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_memory = Mock(side_effect=torch.OutOfMemoryError("CUDA out of memory"))
    monkeypatch.setattr("trainers.model.encoder.SentenceTransformer", no_memory)
    with pytest.raises(torch.OutOfMemoryError):
        Encoder.load(tiny_folder, "cpu")
