"""The servers' jars: downloaded once into the Maven cache, verified against the lock file at every start."""

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import requests
import structlog
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.env import LockFile
from jgo.maven import Artifact, MavenContext
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter

from foldtune.digests import file_sha256
from infra.local.errors import JarDigestError, JarUnavailableError

KAFKA_LOCK = Path(__file__).with_name("kafka.lock.toml")
S3PROXY_LOCK = Path(__file__).with_name("s3proxy.lock.toml")

DOWNLOADS = 4
ATTEMPTS = 4
LONGEST_WAIT_SECONDS = 10

_log = structlog.get_logger(__name__)


def maven_context(repo_cache: Path | None = None) -> MavenContext:
    """The Maven cache and mirrors of this user's jgo settings."""
    settings = GlobalSettings.load()
    return MavenContext(
        repo_cache=repo_cache or settings.repo_cache,
        remote_repos={"central": MAVEN_CENTRAL_URL, **settings.repositories},
        timeout=30,
    )


def locked_jars(lock: Path, context: MavenContext | None = None) -> list[Path]:
    """The jars of a jgo lock file, in its order, each with the locked SHA-256.

    A cached jar with another digest (a partial download, say) is downloaded again and replaced.

    Raises:
        JarUnavailableError: a jar is not in the cache and could not be downloaded.
        JarDigestError: a downloaded jar has another digest than the locked one.
    """
    context = context or maven_context()
    jars = [
        (
            context.project(jar.groupId, jar.artifactId)
            .at_version(jar.version)
            .artifact(jar.classifier or "", jar.packaging),
            jar.sha256,
        )
        for jar in LockFile.load(lock).dependencies
    ]
    with ThreadPoolExecutor(DOWNLOADS) as pool:
        return list(pool.map(lambda jar: _verified(*jar), jars))


def _verified(artifact: Artifact, digest: str) -> Path:
    path = Path(artifact.cached_path or artifact.filename)
    if not path.is_file() or file_sha256(path) != digest:
        _log.info("downloading jar", jar=artifact.filename)
        try:
            _download(artifact, path, digest)
        except (requests.RequestException, RuntimeError, OSError) as error:
            raise JarUnavailableError(artifact.filename, path, error) from error
    return path


@retry(
    # Network errors are transient; jgo's RuntimeError says that the repository has no such jar.
    retry=retry_if_exception_type(requests.RequestException),
    stop=stop_after_attempt(ATTEMPTS),
    wait=wait_exponential_jitter(max=LONGEST_WAIT_SECONDS),
    reraise=True,
)
def _download(artifact: Artifact, target: Path, digest: str) -> None:
    """Download beside the cache, verify, then move: other processes never see a partial jar."""
    cache, component = artifact.context, artifact.component
    cache.repo_cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".foldtune-", dir=cache.repo_cache) as folder:
        temporary = MavenContext(
            resolver=cache.resolver,
            repo_cache=Path(folder),
            remote_repos=cache.remote_repos,
            timeout=cache.timeout,
        )
        project = temporary.project(component.groupId, component.artifactId).at_version(component.version)
        fresh = project.artifact(artifact.classifier, artifact.packaging).resolve()
        actual = file_sha256(fresh)
        if actual != digest:
            raise JarDigestError(artifact.filename, actual, digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh.replace(target)
