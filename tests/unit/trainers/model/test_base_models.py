"""Access to base models, their digests and their licences."""

import shutil
from pathlib import Path

import pytest

from foldtune.events import ModelReference
from foldtune.settings import TrainerSettings
from foldtune.testing import MemoryObjectStore
from tests.models import write_modules
from trainers.errors import BadModelError, ModelRefusedError
from trainers.model.base_models import (
    MINILM_SHA256,
    check_weights,
    copy_configuration,
    fetch_base_model,
    licence,
    packaged_minilm,
    packaged_minilm_folder,
)
from trainers.model.encoder import Encoder

STORE = MemoryObjectStore()


def test_the_packaged_model_is_loaded_only_from_an_allowed_folder(tmp_path: Path) -> None:
    allowed = TrainerSettings(model_folders=(packaged_minilm_folder(),))
    assert fetch_base_model(packaged_minilm(), allowed, STORE, tmp_path) == packaged_minilm_folder()
    assert packaged_minilm().weights_sha256 == MINILM_SHA256
    with pytest.raises(ModelRefusedError, match=r"trainer\.model_folders"):
        fetch_base_model(packaged_minilm(), TrainerSettings(), STORE, tmp_path)


def test_links_and_dots_do_not_lead_out_of_the_allowed_folders(tmp_path: Path, tiny_folder: Path) -> None:
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


def test_weights_that_are_not_whole_are_refused_in_words(tmp_path: Path, tiny_folder: Path) -> None:
    weights = shutil.copytree(tiny_folder, tmp_path / "model") / "model.safetensors"
    whole = weights.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9"
    for content, reason in (
        (pointer, "a pointer of Git LFS"),
        (whole[:-100], "not whole"),
        (whole[:50], "not whole"),
        (b"", "not whole"),
    ):
        weights.write_bytes(content)
        with pytest.raises(BadModelError, match=rf"model\.safetensors is {reason}"):
            check_weights(weights.parent, None)


def test_what_loads_the_base_model_is_copied_and_nothing_else(tmp_path: Path, tiny_folder: Path) -> None:
    base = write_modules(shutil.copytree(tiny_folder, tmp_path / "base"))
    kept = ("spm.model", "bpe.codes", "chat_template.jinja", "1_Pooling/config.json", "config.json")
    left = ("code.py", "pytorch_model.bin", "README.md", "metrics.json", "model.safetensors.index.json", "onnx/x.json")
    for name in (*kept, *left):
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(name)
    write_modules(base)
    copy_configuration(base, tmp_path / "copy")
    for name in kept:
        assert (tmp_path / "copy" / name).read_bytes() == (base / name).read_bytes()
    assert not [name for name in (*left, "model.safetensors") if (tmp_path / "copy" / name).exists()]


def test_a_hub_model_without_a_revision_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefusedError, match="revision"):
        fetch_base_model(ModelReference(uri="hf://org/name"), TrainerSettings(), STORE, tmp_path)


def test_a_model_in_the_bucket_is_downloaded_without_its_code(tmp_path: Path, tiny_folder: Path) -> None:
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
    ("card", "expected"),
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
def test_only_a_plain_licence_identifier_is_read_from_a_card(
    card: str | None, expected: str | None, tmp_path: Path
) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert licence(tmp_path) == expected


def test_the_licence_of_the_packaged_model() -> None:
    assert licence(packaged_minilm_folder()) == "apache-2.0"
