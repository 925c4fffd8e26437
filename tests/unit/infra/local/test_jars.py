"""The lock files, and that only locked jars are used."""

import hashlib
import tomllib
from pathlib import Path

import pytest
import requests
from jgo.maven import Artifact, MavenContext, PythonResolver

from infra.local import jars
from infra.local.errors import JarDigestError, JarUnavailableError
from infra.local.jars import KAFKA_LOCK, S3PROXY_LOCK, locked_jars

GOOD = b"the jar that was locked"


class Registry(PythonResolver):
    """Answers downloads with the given contents in order; an exception is raised."""

    def __init__(self, *answers: bytes | Exception) -> None:
        super().__init__()
        self.answers = list(answers)

    def download(self, artifact: Artifact) -> Path:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        path = Path(str(artifact.cached_path))
        path.parent.mkdir(parents=True)
        path.write_bytes(answer)
        return path


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    path = tmp_path / "lock.toml"
    path.write_text(
        "[[dependencies]]\n"
        'groupId = "org.example"\nartifactId = "thing"\nversion = "1.0"\nclassifier = "all"\npackaging = "jar"\n'
        f'sha256 = "{hashlib.sha256(GOOD).hexdigest()}"\n'
    )
    return path


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jars._download.retry, "sleep", lambda _seconds: None)


def context(tmp_path: Path, *answers: bytes | Exception) -> MavenContext:
    return MavenContext(repo_cache=tmp_path / "m2", local_repos=[], resolver=Registry(*answers))


def cached(tmp_path: Path) -> Path:
    return tmp_path / "m2/org/example/thing/1.0/thing-1.0-all.jar"


def test_a_jar_is_downloaded_once(lock: Path, tmp_path: Path) -> None:
    assert locked_jars(lock, context(tmp_path, GOOD)) == [cached(tmp_path)]
    assert locked_jars(lock, context(tmp_path)) == [cached(tmp_path)]
    assert cached(tmp_path).read_bytes() == GOOD


def test_a_changed_jar_in_the_cache_is_replaced(lock: Path, tmp_path: Path) -> None:
    cached(tmp_path).parent.mkdir(parents=True)
    cached(tmp_path).write_bytes(GOOD[:5])
    locked_jars(lock, context(tmp_path, GOOD))
    assert cached(tmp_path).read_bytes() == GOOD


def test_a_changed_jar_from_the_network_is_refused_and_not_kept(lock: Path, tmp_path: Path) -> None:
    with pytest.raises(JarDigestError, match=hashlib.sha256(b"evil").hexdigest()):
        locked_jars(lock, context(tmp_path, b"evil"))
    assert [path for path in (tmp_path / "m2").rglob("*") if path.is_file()] == []


def test_a_transient_network_error_is_retried(lock: Path, tmp_path: Path) -> None:
    locked_jars(lock, context(tmp_path, requests.ConnectionError("reset"), requests.Timeout("slow"), GOOD))
    assert cached(tmp_path).read_bytes() == GOOD


def test_a_missing_network_is_named_in_the_error(lock: Path, tmp_path: Path) -> None:
    failures = [requests.ConnectionError("no route")] * jars.ATTEMPTS
    with pytest.raises(JarUnavailableError, match=r"connect to the network.*thing-1.0-all.jar.*no route"):
        locked_jars(lock, context(tmp_path, *failures))


def test_a_jar_that_does_not_exist_is_not_retried(lock: Path, tmp_path: Path) -> None:
    with pytest.raises(JarUnavailableError):
        locked_jars(lock, context(tmp_path, RuntimeError("not found"), GOOD))


@pytest.mark.parametrize("path", [KAFKA_LOCK, S3PROXY_LOCK])
def test_every_locked_jar_has_a_digest_and_no_url(path: Path) -> None:
    assert "://" not in path.read_text()
    locked = tomllib.loads(path.read_text())["dependencies"]
    assert locked
    assert all(len(jar["sha256"]) == 64 for jar in locked)
