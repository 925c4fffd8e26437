"""Every form of starting workers that the docs show, with the environment that each gives to each worker.

The addresses, topics and data folders are the test's, and the session is short, so that "stay" is longer than it.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from foldtune.settings import Settings
from tests.integration.conftest import StartWorker
from tests.integration.test_group_membership import SHARED_WITHIN_SECONDS, assert_stays_shared, shared
from tests.integration.test_http_server import MonitoredWorker, until
from tests.unit.infra.test_compose import COMPOSE
from tests.unit.infra.test_kubernetes import rendered

ROOT = Path(__file__).parents[2]
COUNTS = (1, 2, 3, 5)
RUNNING_WITHIN_SECONDS = 90
INSTANCE_ID = "FOLDTUNE_WORKER__INSTANCE_ID"
DATA_DIR = "FOLDTUNE_WORKER__DATA_DIR"
# Of where a worker runs, not of how it is started.
SURROUNDINGS = re.compile("FOLDTUNE_(KAFKA|S3)__")


def variables_of(text: str) -> dict[str, str]:
    return dict(re.findall(r"(FOLDTUNE_\w+)=(\S+)", text))


def readme(number: int) -> dict[str, str]:
    """The README's commands; the further ones are like them, "each with its own" data folder."""
    found = re.findall(r"^((?:FOLDTUNE_\S+ )*)foldtune worker$", (ROOT / "README.md").read_text(), re.MULTILINE)
    commands = [variables_of(command) for command in found]
    assert len(commands) == 2
    assert all(DATA_DIR in command for command in commands)
    more = {DATA_DIR: re.sub(r"\d+", str(number + 1), commands[0][DATA_DIR])}
    return commands[number] if number < len(commands) else commands[0] | more


def readme_named(number: int) -> dict[str, str]:
    """… with the instance id of its own, that the README says a worker may have."""
    assert f"also has its own `{INSTANCE_ID}`" in (ROOT / "README.md").read_text()
    return readme(number) | {INSTANCE_ID: f"worker-{number + 1}"}


def readme_mixed(number: int) -> dict[str, str]:
    return (readme, readme_named)[number % 2](number)


def image() -> dict[str, str]:
    text = (COMPOSE.parent / "docker/Dockerfile").read_text()
    stage = re.search(r"^FROM .* AS worker$(.*?)^FROM ", text, re.MULTILINE | re.DOTALL)
    assert stage
    assert DATA_DIR in variables_of(stage[1])
    return variables_of(stage[1])


def compose(number: int) -> dict[str, str]:
    """Each replica of the service has the same."""
    service: dict[str, dict[str, str]] = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["worker"]
    return image() | service["environment"]


def kubernetes(number: int) -> dict[str, str]:
    """A pod of the StatefulSet, whose secret has but credentials."""
    objects = rendered("prod")
    stateful_set = objects["StatefulSet", "foldtune-worker"]
    (container,) = stateful_set["spec"]["template"]["spec"]["containers"]
    found = image()
    for source in container["envFrom"]:
        if "configMapRef" in source:
            found |= objects["ConfigMap", source["configMapRef"]["name"]]["data"]
    fields = {"metadata.name": f"{stateful_set['metadata']['name']}-{number}"}
    for entry in container["env"]:
        found[entry["name"]] = (
            entry["value"] if "value" in entry else fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        )
    return found


FORMS: dict[str, Callable[[int], dict[str, str]]] = {
    "README": readme,
    "README, named": readme_named,
    "README, mixed": readme_mixed,
    "compose": compose,
    "Kubernetes": kubernetes,
}


def test_each_form_names_its_workers_as_documented() -> None:
    names = {form: [of(number).get(INSTANCE_ID, "") for number in range(5)] for form, of in FORMS.items()}
    assert names == {
        "README": [""] * 5,
        "README, named": [f"worker-{number}" for number in range(1, 6)],
        "README, mixed": ["", "worker-2", "", "worker-4", ""],
        "compose": [""] * 5,
        "Kubernetes": [f"foldtune-worker-{number}" for number in range(5)],
    }
    assert len({readme(number)[DATA_DIR] for number in range(5)}) == 5


@pytest.mark.matrix
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("form", FORMS)
def test_workers_share_the_partitions_soon_and_for_good(
    settings: Settings,
    start_worker: StartWorker,
    record_property: Callable[[str, object], None],
    form: str,
    count: int,
) -> None:
    workers = []
    for number in range(count):
        given = {name: value for name, value in FORMS[form](number).items() if not SURROUNDINGS.match(name)}
        # Containers have a network and a volume each.
        own = {"FOLDTUNE_WORKER__HTTP_PORT": "0", "FOLDTUNE_WORKER__HTTP_HOST": "127.0.0.1"}
        own[DATA_DIR] = str(settings.worker.data_dir / str(number))
        workers.append(MonitoredWorker(start_worker(str(number), **{INSTANCE_ID: ""} | given | own)))
    # A busy machine takes long to start interpreters, which says nothing about the group.
    running = until(lambda: all(worker.get("/health")[0] for worker in workers), RUNNING_WITHIN_SECONDS)
    sharing = until(lambda: shared(workers), SHARED_WITHIN_SECONDS)
    record_property("seconds_until_running", round(running, 1))
    record_property("seconds_until_shared", round(running + sharing, 1))
    assert_stays_shared(workers)
