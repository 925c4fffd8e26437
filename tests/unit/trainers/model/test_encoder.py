import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from foldtune.events import ModelReference
from foldtune.settings import TrainerSettings
from foldtune.testing import MemoryObjectStore
from trainers.errors import BadModelError, ModelRefusedError
from trainers.model.base_models import MINILM_SHA256, fetch_base_model, licence, packaged_minilm, packaged_minilm_folder
from trainers.model.encoder import Encoder, passage_text
from trainers.model.encoding_config import EncodingConfig, read_encoding_config, write_encoding_config
from trainers.model.tokens import by_length

STORE = MemoryObjectStore()


def test_embeddings_keep_the_order_of_the_texts(tiny_folder: Path) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    texts = ["short", "a much longer text " * 30, "", "middle sized one"]
    seen: list[tuple[int, int]] = []
    together = encoder.encode(texts, batch_tokens=80, progress=lambda done, total: seen.append((done, total)))
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert seen[-1] == (4, 4)
    assert encoder.encode([]).shape == (0, 32)


def test_a_document_is_embedded_with_its_title() -> None:
    assert passage_text("Ferries", "They sail.") == "Ferries\nThey sail."
    assert passage_text("", "They sail.") == "They sail."


def test_batches_are_full_and_hold_every_text() -> None:
    lengths = np.array([3, 50, 7, 8, 8, 1, 120])
    batches = list(by_length(lengths, 60))
    assert sorted(np.concatenate(batches).tolist()) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * lengths[batch].max() <= 60 for batch in batches)


def test_a_recipe_survives_its_files(tmp_path: Path) -> None:
    encoding_config = EncodingConfig(
        "lasttoken", normalize=False, max_tokens=99, query_prompt="query: ", passage_prompt="passage: "
    )
    write_encoding_config(encoding_config, tmp_path, dimension=32, max_tokens=99)
    assert read_encoding_config(tmp_path) == encoding_config
    assert read_encoding_config(packaged_minilm_folder()) == EncodingConfig("mean", normalize=True, max_tokens=256)


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken"])
def test_pools_as_sentence_transformers_does(pooling: str, tiny_folder: Path, tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer

    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    encoding_config = EncodingConfig(pooling, normalize=pooling != "cls", max_tokens=20, query_prompt="find: ")  # type: ignore[arg-type]
    write_encoding_config(encoding_config, folder, dimension=32, max_tokens=20)
    texts = ["some words", "other " * 50]
    ours, theirs = Encoder.load(folder, "cpu"), SentenceTransformer(str(folder), device="cpu")
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode_query(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode(texts), theirs.encode_document(texts), atol=1e-5)


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_D"}]))
    with pytest.raises(BadModelError, match="Dense"):
        read_encoding_config(tmp_path)


def test_the_packaged_model_needs_its_folder_allowed(tmp_path: Path) -> None:
    allowed = TrainerSettings(model_folders=(packaged_minilm_folder(),))
    assert fetch_base_model(packaged_minilm(), allowed, STORE, tmp_path) == packaged_minilm_folder()
    assert packaged_minilm().weights_sha256 == MINILM_SHA256
    with pytest.raises(ModelRefusedError, match=r"trainer\.model_folders"):
        fetch_base_model(packaged_minilm(), TrainerSettings(), STORE, tmp_path)


def test_no_link_and_no_dots_lead_out_of_the_allowed_folders(tmp_path: Path, tiny_folder: Path) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    (allowed / "link").symlink_to(tiny_folder)
    settings = TrainerSettings(model_folders=(allowed,))
    for uri in ((allowed / "link").as_uri(), f"{allowed.as_uri()}/../{tiny_folder.name}", f"{allowed.as_uri()}/%2e%2e"):
        with pytest.raises(ModelRefusedError):
            fetch_base_model(ModelReference(uri=uri), settings, STORE, tmp_path)


def test_other_weights_and_pickled_weights_are_refused(tmp_path: Path, tiny_folder: Path) -> None:
    settings = TrainerSettings(model_folders=(tmp_path, tiny_folder))
    with pytest.raises(BadModelError, match="weights_sha256"):
        fetch_base_model(ModelReference(uri=tiny_folder.as_uri(), weights_sha256="0" * 64), settings, STORE, tmp_path)
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(BadModelError, match="pickled"):
        fetch_base_model(ModelReference(uri=(tmp_path / "pickled").as_uri()), settings, STORE, tmp_path)


def test_a_branch_of_a_hub_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="revision"):
        fetch_base_model(ModelReference(uri="hf://org/name"), TrainerSettings(), STORE, tmp_path)


def test_a_model_in_the_own_bucket(tmp_path: Path, tiny_folder: Path) -> None:
    store = MemoryObjectStore()
    for path in tiny_folder.iterdir():
        store.put_file(f"bases/tiny/{path.name}", path)
    store.put("bases/tiny/evil.py", b"print()")
    folder = fetch_base_model(ModelReference(uri=store.uri("bases/tiny")), TrainerSettings(), store, tmp_path)
    assert Encoder.load(folder, "cpu").dimension == 32
    assert not (folder / "evil.py").exists()
    with pytest.raises(ModelRefusedError):
        fetch_base_model(ModelReference(uri="s3://elsewhere/bases/tiny"), TrainerSettings(), store, tmp_path)


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: mit\n---\n# A model\n", "mit"),
        ("---\nlicense: [mit, bsd]\n---\n", None),
        ("---\nlicense: |\n  mit\n  **bold**\n---\n", None),
        ("---\nlicense: !!python/object/apply:os.system [true]\n---\n", None),
        ("---\n: : [\n---\n", None),
        ("no card", None),
        (None, None),
    ],
)
def test_only_a_plain_licence_is_taken_from_a_card(card: str | None, found: str | None, tmp_path: Path) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == found


def test_the_licence_of_the_packaged_model() -> None:
    assert licence(packaged_minilm_folder()) == "apache-2.0"
