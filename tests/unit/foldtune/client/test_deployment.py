"""A model is deployed completely and verified, or not at all."""

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from foldtune.client.deployment import Deployer, fetch_model
from foldtune.errors import ModelFileError, ObjectStoreError
from foldtune.events import ManifestFile, ModelManifest, ModelReady
from foldtune.object_keys import key_segment
from foldtune.object_store import ObjectStore
from foldtune.testing import MemoryObjectStore
from tests.support import model_ready

FILES = {"config.json": b"{}", "1_Pooling/config.json": b'{"mean": true}', "model.safetensors": b"weights"}


def publish(store: ObjectStore, version: str, files: dict[str, bytes] = FILES) -> ModelReady:
    """Put a model on the store like a trainer."""
    prefix = f"models/support/{version}"
    entries = []
    for path, content in files.items():
        store.put(f"{prefix}/{path}", content)
        entries.append(ManifestFile(path=path, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)))
    manifest = ModelManifest(files=tuple(entries)).encode()
    store.put(f"{prefix}/manifest.json", manifest)
    return model_ready(
        model="support",
        version=version,
        model_uri=store.uri(prefix),
        manifest_sha256=hashlib.sha256(manifest).hexdigest(),
    )


@pytest.fixture
def store() -> MemoryObjectStore:
    return MemoryObjectStore()


def test_a_model_is_downloaded_and_linked(store: MemoryObjectStore, tmp_path: Path) -> None:
    first, second = publish(store, "v1"), publish(store, "v2", {"model.safetensors": b"better"})
    path = fetch_model(first, store, tmp_path)
    assert path == tmp_path / key_segment("support") / "v1"
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    current = path.parent / "current"
    assert current.resolve() == path.resolve()
    fetch_model(second, store, tmp_path)
    assert (current / "model.safetensors").read_bytes() == b"better"
    assert sorted(entry.name for entry in path.parent.iterdir()) == [".newest", "current", "v1", "v2"]


def test_a_downloaded_version_is_not_downloaded_again(store: MemoryObjectStore, tmp_path: Path) -> None:
    ready = publish(store, "v1")
    path = fetch_model(ready, store, tmp_path)
    assert fetch_model(ready, MemoryObjectStore(), tmp_path) == path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.safetensors": b"WEIGHTS"}, "SHA-256"),
        ({"model.safetensors": b"weights and more"}, "bytes"),
        ({"manifest.json": b"{}"}, "manifest.json"),
    ],
)
def test_a_changed_file_is_rejected(
    store: MemoryObjectStore, tmp_path: Path, change: dict[str, bytes], message: str
) -> None:
    ready = publish(store, "v1")
    for name, content in change.items():
        store.put(f"models/support/v1/{name}", content)
    with pytest.raises(ModelFileError, match=message):
        fetch_model(ready, store, tmp_path)
    assert list((tmp_path / key_segment("support")).iterdir()) == []


def test_a_missing_file_is_rejected(store: MemoryObjectStore, tmp_path: Path) -> None:
    ready = publish(store, "v1")
    store.delete("models/support/v1/config.json")
    with pytest.raises(ModelFileError, match="Object not found"):
        fetch_model(ready, store, tmp_path)


@pytest.mark.parametrize("version", ["current", "../v1", "", ".hidden", "a/b"])
def test_a_version_that_is_not_a_folder_name_is_rejected(
    store: MemoryObjectStore, tmp_path: Path, version: str
) -> None:
    ready = publish(store, "v1").model_copy(update={"version": version})
    with pytest.raises(ModelFileError, match="is not a valid folder name"):
        fetch_model(ready, store, tmp_path)


@pytest.mark.parametrize("path", ["../a", "/a", "a/../b", "a\\b", "a//b", ".", "", "C:a", "a\0b"])
def test_a_manifest_names_only_files_below_itself(path: str) -> None:
    with pytest.raises(ValidationError):
        ManifestFile(path=path, sha256="0" * 64, bytes=1)


def test_a_manifest_names_each_file_once() -> None:
    file = ManifestFile(path="a", sha256="0" * 64, bytes=1)
    with pytest.raises(ValidationError, match="twice"):
        ModelManifest(files=(file, file))


class Clock:
    """Time that passes by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class FailingStore(MemoryObjectStore):
    """Fails as long as it has errors left."""

    def __init__(self) -> None:
        super().__init__()
        self.errors: list[Exception] = []

    def get_file(self, key: str, path: Path) -> None:
        if self.errors:
            raise self.errors.pop(0)
        super().get_file(key, path)


def current(target: Path) -> str:
    """The deployed version."""
    return (target / key_segment("support") / "current").readlink().name


def failures_of(store: ObjectStore, target: Path, clock: Clock) -> tuple[Deployer, list[str]]:
    """A deployer, and what it reports."""
    reported: list[str] = []
    return Deployer(store, target, lambda ready, error: reported.append(f"{ready.version}: {error}"), clock), reported


def test_a_failed_deployment_is_tried_again_later_and_later(tmp_path: Path) -> None:
    store, clock = FailingStore(), Clock()
    deployer, reported = failures_of(store, tmp_path, clock)
    store.errors = [ObjectStoreError("503"), OSError("no space left on device"), ObjectStoreError("timeout")]
    deployer.offer(publish(store, "v1"))
    tried = []
    for clock.now in range(10):
        before = len(store.errors)
        deployed = list(deployer.deploy_due())
        if len(store.errors) < before or deployed:
            tried.append(clock.now)
    assert tried == [0, 1, 3, 7]
    assert ["503" in reported[0], "no space" in reported[1], "timeout" in reported[2]] == [True, True, True]
    assert (current(tmp_path), deployer.idle) == ("v1", True)


def test_a_newer_version_takes_the_place_of_one_that_fails(tmp_path: Path) -> None:
    store, clock = FailingStore(), Clock()
    deployer, reported = failures_of(store, tmp_path, clock)
    store.errors = [ObjectStoreError("503")]
    deployer.offer(publish(store, "v1"))
    assert list(deployer.deploy_due()) == []
    deployer.offer(publish(store, "v2"))
    # Read again, from the beginning.
    deployer.offer(publish(store, "v1"))
    assert [folder.name for folder in deployer.deploy_due()] == ["v2"]
    assert (len(reported), deployer.idle) == (1, True)


def test_a_model_in_another_bucket_does_not_end_the_deployer(tmp_path: Path) -> None:
    store, clock = MemoryObjectStore(), Clock()
    deployer, reported = failures_of(store, tmp_path, clock)
    deployer.offer(publish(store, "v1").model_copy(update={"model_uri": "s3://elsewhere/models/m/v1"}))
    assert list(deployer.deploy_due()) == []
    assert "elsewhere" in reported[0]


def test_a_deployment_never_goes_back_by_itself(tmp_path: Path) -> None:
    store, clock = MemoryObjectStore(), Clock()
    deployer, _ = failures_of(store, tmp_path, clock)
    for version in ("v2", "v1", "v2"):
        deployer.offer(publish(store, version))
        list(deployer.deploy_due())
    deployer.offer(publish(store, "v1"))
    assert (current(tmp_path), deployer.idle) == ("v2", True)


@pytest.mark.parametrize("by_command", [True, False])
def test_an_operator_who_goes_back_is_not_overruled_by_the_next_start(tmp_path: Path, by_command: bool) -> None:
    store, clock = MemoryObjectStore(), Clock()
    deployer, _ = failures_of(store, tmp_path, clock)
    for version in ("v1", "v2"):
        deployer.offer(publish(store, version))
        list(deployer.deploy_due())
    if by_command:
        fetch_model(publish(store, "v1"), store, tmp_path)
    else:
        link = tmp_path / key_segment("support") / "current"
        link.unlink()
        link.symlink_to("v1")
    restarted, _ = failures_of(store, tmp_path, clock)
    restarted.offer(publish(store, "v2"))
    assert (restarted.idle, current(tmp_path)) == (True, "v1")
    restarted.offer(publish(store, "v3"))
    list(restarted.deploy_due())
    assert current(tmp_path) == "v3"


def test_without_a_record_of_the_newest_version_it_is_the_current_one(tmp_path: Path) -> None:
    """Of a folder that an earlier release wrote."""
    store, clock = MemoryObjectStore(), Clock()
    deployer, _ = failures_of(store, tmp_path, clock)
    deployer.offer(publish(store, "v2"))
    assert len(list(deployer.deploy_due())) == 1
    next(tmp_path.rglob(".newest")).unlink()
    deployer.offer(publish(store, "v1"))
    assert deployer.idle


def test_a_model_whose_link_was_removed_is_deployed_again(tmp_path: Path) -> None:
    store, clock = MemoryObjectStore(), Clock()
    deployer, _ = failures_of(store, tmp_path, clock)
    ready = publish(store, "v1")
    deployer.offer(ready)
    assert len(list(deployer.deploy_due())) == 1
    next(tmp_path.rglob("current")).unlink()
    deployer.offer(ready)
    assert len(list(deployer.deploy_due())) == 1
    assert current(tmp_path) == "v1"
