"""The rights of each part's user."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.acls import RIGHTS, Acl, Part, acls, command_line
from foldtune.cli import app
from foldtune.settings import Settings, load_settings
from foldtune.topics import Topic, changelogs

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


def cell(topics: tuple[Topic, ...]) -> str:
    return "all topics" if topics == tuple(Topic) else ", ".join(f"`{topic.label}`" for topic in topics)


@pytest.mark.parametrize("part", Part)
def test_the_page_shows_the_rights_of_each_part(part: Part) -> None:
    rights, settings = RIGHTS[part], Settings()
    changed = cell(rights.manages)
    if part is Part.WORKER:
        changed += f", its changelogs ({', '.join(f'`{name}`' for name in changelogs(settings.worker.app_id))})"
    names = (
        f"`{name}{'…' if acl.prefixed else ''}`"
        for acl in acls(part, settings)
        if acl.resource == "group"
        for name in acl.names
    )
    columns = (cell(rights.reads), cell(rights.writes), cell(rights.checks), changed, ", ".join(names))
    (row,) = re.findall(rf"^ *\| `{part}` \| [^|]+ \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    assert tuple(column.strip() for column in row.split("|")) == columns


def test_whoever_reads_a_topic_there_is_one_who_writes_it() -> None:
    written = {topic for rights in RIGHTS.values() for topic in rights.writes}
    read = {topic for rights in RIGHTS.values() for topic in rights.reads}
    assert written == read == set(Topic)


def test_names_have_the_prefix_and_the_application_of_the_settings() -> None:
    settings = Settings.model_validate({"kafka": {"topic_prefix": "p-"}, "worker": {"app_id": "app"}})
    names = {name for part in Part for acl in acls(part, settings) for name in acl.names}
    others = {*changelogs("app"), "app", "p-foldtune-", "p-foldtune-notifier", "p-deployer"}
    assert names == {topic.named("p-") for topic in Topic} | others | {
        "p-foldtune-",
        "p-foldtune-notifier",
        "p-deployer",
    }


def test_an_acl_is_a_command_line_of_kafkas_tool() -> None:
    line = command_line("User:CN=a b", Acl(("READ", "ALTER_CONFIGS"), "topic", ("x", "y")), "h:1")
    assert line == (
        "kafka-acls.sh --bootstrap-server h:1 --add --allow-principal 'User:CN=a b'"
        " --operation Read --operation AlterConfigs --topic x --topic y"
    )
    prefixed = command_line("User:a", Acl(("READ",), "group", ("g",), prefixed=True), "h:1")
    assert prefixed.endswith(" --operation Read --group g --resource-pattern-type prefixed")


def test_the_command_prints_the_acls_of_the_users_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_KAFKA__TOPIC_PREFIX", "p-")
    load_settings.cache_clear()
    try:
        given = CliRunner().invoke(app, ["topics", "acls", "--user", "agent=CN=agent,O=us"])
        refused = CliRunner().invoke(app, ["topics", "acls", "--user", "agents=x"])
    finally:
        load_settings.cache_clear()
    lines = given.output.splitlines()
    assert "--allow-principal User:CN=agent,O=us --operation Write --topic p-chat-logs --topic p-feedback" in lines[0]
    assert {match[1] for line in lines if (match := re.search(r"User:foldtune-(\S+)", line))} == set(Part) - {"agent"}
    assert refused.exit_code == 2
    assert "--user agents=x: should be PART=USER, where PART is one of agent, ingest" in refused.output
