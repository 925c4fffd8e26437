"""Weights that are not whole or do not fit are known by a few kilobytes."""

import json
from typing import Any

import pytest

from foldtune.errors import ModelFolderError
from foldtune.model_weights import check_weights
from tests.weights import bert, safetensors

CONFIG: dict[str, Any] = {"model_type": "bert", "num_hidden_layers": 3, "hidden_size": 4, "vocab_size": 10}
WHOLE = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": safetensors(bert())}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = {"model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode()}


def check(files: dict[str, bytes]) -> int:
    """The most that was read of one file."""
    most = 0

    def read_start(name: str, count: int) -> tuple[bytes, int]:
        nonlocal most
        most = max(most, count)
        return files[name][:count], len(files[name])

    def read(name: str) -> bytes:
        try:
            return files[name]
        except KeyError as error:
            raise FileNotFoundError(name) from error

    check_weights(files.keys(), read, read_start)
    return most


def of(weights: bytes, **config: Any) -> dict[str, bytes]:
    return {"config.json": json.dumps(CONFIG | config).encode(), "model.safetensors": weights}


@pytest.mark.parametrize(
    "files",
    [
        WHOLE,
        # As transformers writes a model with a head for another task.
        of(safetensors(bert(prefix="bert.") | {"cls.predictions.bias": (10,)})),
        # Narrower word embeddings; layers by another name; encoder and decoder; a family that shares its layers.
        of(safetensors(bert(width=2)), embedding_size=2),
        of(safetensors(bert()), num_hidden_layers=None, n_layer=3),
        of(safetensors(bert() | {"decoder.layers.7.x": (1,)})),
        of(safetensors({"encoder.albert_layer_groups.0.albert_layers.0.x": (1,)})),
        # A configuration that says nothing of what is compared.
        {"config.json": b"{}", "model.safetensors": safetensors(bert())},
        INDEX
        | {
            "config.json": WHOLE["config.json"],
            SHARDS[0]: safetensors(bert(2)),
            SHARDS[1]: safetensors({"encoder.layer.2.x": (1,)}),
        },
    ],
)
def test_whole_weights_that_fit_are_accepted(files: dict[str, bytes]) -> None:
    assert check(files) <= 1 << 16


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        (of(POINTER), "model.safetensors is a pointer of Git LFS, the weights were not fetched"),
        (of(WHOLE["model.safetensors"][:-1]), "model.safetensors is not whole: "),
        (of(WHOLE["model.safetensors"] + b"x"), "model.safetensors is not whole: "),
        (of(WHOLE["model.safetensors"][:50]), "model.safetensors is not whole: 50 bytes, less than its header"),
        (of(b""), "model.safetensors is not whole: 0 bytes"),
        (of(b"<html>" * 9), "is not whole"),
        (of((9).to_bytes(8, "little") + b"[" * 9), "not in safetensors"),
        (of((2).to_bytes(8, "little") + b"[]"), "not in safetensors"),
        (of((9).to_bytes(8, "little") + b'{"a": {}}'), "not in safetensors"),
        (
            of(safetensors(bert(2))),
            "it has 3 layers, of which 1 have no weights, and there are weights of 0",
        ),
        (of(safetensors(bert(5))), "of which 0 have no weights, and there are weights of 2 others"),
        (of(safetensors(bert()), num_hidden_layers=10**18), "of which 999999999999999997 have no weights"),
        (
            of(safetensors(bert(prefix="0.auto_model."))),
            "5 of 5 have the names of another program (such as 0.auto_model.embeddings.word_embeddings.weight)",
        ),
        (of(safetensors(bert(width=6))), "embeddings.word_embeddings.weight has the shape 10 x 6, not 10 x 4"),
        (
            of(safetensors(bert(), "I8")),
            "quantized weights cannot be trained: 1 of 1 matrices (such as embeddings.word_embeddings.weight, I8)",
        ),
        (of(safetensors(bert()), vocab_size=11), "has the shape 10 x 4, not 11 x 4"),
        (
            WHOLE
            | {
                "modules.json": json.dumps(
                    [
                        {"path": path, "type": f"sentence_transformers.models.{kind}"}
                        for path, kind in (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense"))
                    ]
                ).encode(),
                "2_Dense/model.safetensors": POINTER,
            },
            "2_Dense/model.safetensors is a pointer",
        ),
        (
            INDEX | {"config.json": b"{}", SHARDS[0]: safetensors(bert())},
            f"{SHARDS[1]} is missing, which model.safetensors.index.json names (1 of 2 files)",
        ),
        ({"config.json": b"{}", SHARDS[0]: safetensors(bert())}, "index.json is missing or names no files"),
        (
            {"config.json": b"{}", SHARDS[0]: safetensors(bert()), "model.safetensors.index.json": b"[]"},
            "index.json is missing or names no files",
        ),
    ],
)
def test_what_is_not_whole_or_does_not_fit_is_named(files: dict[str, bytes], reason: str) -> None:
    with pytest.raises(ModelFolderError) as found:
        check(files)
    assert reason in str(found.value)


def test_a_long_header_is_read_in_a_second_request_and_an_endless_one_is_not() -> None:
    many = bert() | {f"x{number}": (1,) for number in range(2000)}
    assert check(of(safetensors(many))) > 1 << 16
    endless = (1 << 30).to_bytes(8, "little")

    def read_start(_: str, count: int) -> tuple[bytes, int]:
        assert count <= 1 << 16
        return endless, 1 << 40

    check_weights(WHOLE, WHOLE.__getitem__, read_start)
