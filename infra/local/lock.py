"""Rewrites the lock files after a version below was changed: ``python -m infra.local.lock``."""

from pathlib import Path

from jgo.constants import VERSION
from jgo.env import LockedDependency, LockFile
from jgo.maven import Artifact, Dependency, MavenContext

from infra.local.jars import KAFKA_LOCK, S3PROXY_LOCK, maven_context

KAFKA = ("org.apache.kafka", "kafka_2.13", "4.4.0")
S3PROXY = ("org.gaul", "s3proxy", "4.1.0")


def kafka_jars(context: MavenContext) -> list[Artifact]:
    """The broker, its dependencies, and the bridge from slf4j to log4j."""
    group, name, version = KAFKA
    broker = Dependency(context.project(group, name).at_version(version).artifact(), scope="compile")
    inputs, transitive = context.resolver.resolve([broker])
    jars = [dep.artifact for dep in (*inputs, *transitive) if dep.scope in {"compile", "runtime"}]
    log4j = next(jar.version for jar in jars if jar.artifactId == "log4j-core")
    # Not resolved together with the broker: the bridge would then select older versions of the broker's dependencies.
    bridge = context.project("org.apache.logging.log4j", "log4j-slf4j-impl").at_version(log4j).artifact()
    return [*jars, bridge]


def s3proxy_jars(context: MavenContext) -> list[Artifact]:
    """The jar with dependencies: resolved one by one, S3Proxy gets a Jackson that is too old for it."""
    group, name, version = S3PROXY
    return [context.project(group, name).at_version(version).artifact("jar-with-dependencies")]


def write_lock(path: Path, name: str, jars: list[Artifact]) -> None:
    """Download the jars, and write their coordinates and SHA-256."""
    locked = [LockedDependency.from_dependency(Dependency(jar)) for jar in jars]
    LockFile(locked, environment_name=name, jgo_version=VERSION).save(path)


if __name__ == "__main__":
    maven = maven_context()
    write_lock(KAFKA_LOCK, "kafka", kafka_jars(maven))
    write_lock(S3PROXY_LOCK, "s3proxy", s3proxy_jars(maven))
