"""The command line without servers: help, errors, settings, missing extras."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from typer.testing import CliRunner

from foldtune.cli import COMMANDS, ENTRY_POINT_GROUP, app
from foldtune.client.client import FoldtuneClient
from foldtune.commands import imports, output
from foldtune.commands.errors import EXTRAS, user_message
from foldtune.commands.event_docs import page
from foldtune.commands.knob_options import KNOBS, knob_sections
from foldtune.events import FineTuneRequested, FineTuneStatus, Progress, State, now
from foldtune.settings import load_settings
from infra.local.errors import DataFolderInUseError
from infra.local.folder import DataFolder
from infra.local.ports import free_port
from infra.local.stack import exports

ROOT = Path(__file__).parents[4]


def test_the_overview_names_every_command_and_imports_none(runner: CliRunner) -> None:
    result = runner.invoke(app, ["--help"])
    assert result.exit_code == 0
    assert all(name in result.output for name in COMMANDS)
    program = "import sys; from foldtune.cli import app; app(['--help'], standalone_mode=False); print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"pydantic", "kafka", "boto3", "faust", "torch", "rich.console"} & set(loaded)


def test_every_installed_command_has_its_line_in_the_overview() -> None:
    assert {entry.name for entry in entry_points(group=ENTRY_POINT_GROUP)} <= set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in {"demo", "worker"}])
def test_every_command_has_help(runner: CliRunner, name: str) -> None:
    result = runner.invoke(app, [name, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


def test_a_misspelt_command_is_answered_with_a_suggestion(runner: CliRunner) -> None:
    result = runner.invoke(app, ["statu"])
    assert result.exit_code == 2
    assert "Did you mean 'status'?" in result.stderr


def test_every_knob_is_an_option_with_its_description_and_bounds(runner: CliRunner) -> None:
    text = " ".join(runner.invoke(app, ["request", "--help"]).output.replace("│", " ").split())
    for knob in KNOBS:
        assert f"--{knob.parameter.removesuffix('s').replace('_', '-')}" in text
        assert str(knob.schema["description"]).split(";")[0][:40] in text
        if "maximum" in knob.schema:
            assert f"<=x<={knob.schema['maximum']:g}]" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["m", "--easy-negatives", "65"], "'--easy-negatives'"),
        (["m", "--temperature", "0"], "'--temperature'"),
        (
            ["m", "--trainable-layers", "none"],
            "foldtune: training.trainable_layers: Input should be a valid integer or 'all'\n",
        ),
        (["m", "--positives", "2"], "dataset.positives"),
        (["m", "--start", "soon"], "data.start"),
        (["m", "--start", "2025-02-01", "--end", "2025-01-01"], "foldtune: data: start must be before end"),
        (["Not A Name"], "foldtune: model: Input should be 1 to 64 lower-case letters"),
        (["m", "--base-model", "ftp://x"], "base_model.uri"),
    ],
)
def test_a_knob_out_of_its_bounds_is_named(runner: CliRunner, options: list[str], message: str) -> None:
    result = runner.invoke(app, ["request", *options])
    assert result.exit_code == 2
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_unset_knobs_are_omitted_from_the_request() -> None:
    given = dict.fromkeys(knob.parameter for knob in KNOBS) | {"epochs": 1, "start": "2025-01-02T03:00:00+01:00"}
    assert knob_sections(given | {"start_from": "incumbent"})["training"] == {"epochs": 1, "start": "incumbent"}
    sections = knob_sections(given)
    assert sections == {
        "data": {"start": "2025-01-02T03:00:00+01:00"},
        "dataset": {},
        "training": {"epochs": 1},
        "weights": {},
    }
    request = {"request_id": "r", "model": "m", "requested_at": "2025-01-02T00:00:00Z"}
    assert FineTuneRequested.model_validate_json(json.dumps(request | sections)).training.epochs == 1


def test_settings_are_shown_without_secrets(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDTUNE_S3__SECRET_ACCESS_KEY", "hunter2")
    monkeypatch.setenv("FOLDTUNE_KAFKA__PARTITIONS", "7")
    shown = json.loads(runner.invoke(app, ["config", "--json"]).stdout)
    assert shown["kafka"]["partitions"] == 7
    assert "hunter2" not in json.dumps(shown)
    load_settings.cache_clear()
    table = runner.invoke(app, ["config"]).stdout
    assert "FOLDTUNE_KAFKA__PARTITIONS" in table
    # A file is as wide as it must be.
    monkeypatch.setenv("COLUMNS", "20")
    assert runner.invoke(app, ["config"]).stdout == table
    assert "hunter2" not in table


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kafka = 1", "foldtune.toml, kafka: "),
        ("[kafka]\npartitions = 0", "foldtune.toml, kafka.partitions: "),
        ("[kafka]\npartition = 1", "foldtune.toml, kafka.partition: unknown setting"),
        ("[kafka", "foldtune.toml"),
    ],
)
def test_an_invalid_setting_is_named_in_one_line(runner: CliRunner, text: str, message: str) -> None:
    Path("foldtune.toml").write_text(text, encoding="utf-8")
    result = runner.invoke(app, ["config"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("FOLDTUNE_KAFKA__PARTITION", "1", "FOLDTUNE_KAFKA__PARTITION: unknown setting"),
        ("FOLDTUNE_KAFKA__PARTITIONS", "0", "FOLDTUNE_KAFKA__PARTITIONS: Input should be greater than"),
        ("FOLDTUNE_KAFKA", '{"partitions": 0}', "FOLDTUNE_KAFKA, kafka.partitions: Input should be greater than"),
        (
            "FOLDTUNE_KAFKA",
            "here",
            "FOLDTUNE_KAFKA: Input should be a section, as JSON or as one variable per field (FOLDTUNE_KAFKA__BOOT",
        ),
    ],
)
def test_an_invalid_variable_is_named_in_one_line(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str
) -> None:
    monkeypatch.setenv(name, value)
    result = runner.invoke(app, ["config"])
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_every_package_of_an_extra_is_known() -> None:
    imported = {"faust-streaming": "faust", "pyjwt": "jwt"}
    found: dict[str, list[str]] = {}
    project = tomllib.loads((ROOT / "server" / "pyproject.toml").read_text())["project"]
    for extra, requirements in project["optional-dependencies"].items():
        for name in (re.split(r"[^\w.-]", requirement)[0] for requirement in requirements):
            if name != "foldtune-server":
                found.setdefault(imported.get(name, name.replace("-", "_")), []).append(extra)
    assert {package: list(extras) for package, extras in EXTRAS.items()} == found


@pytest.mark.parametrize(("package", "extras"), EXTRAS.items())
def test_a_missing_extra_is_named(package: str, extras: tuple[str, ...]) -> None:
    line = user_message(ModuleNotFoundError(f"No module named {package!r}", name=f"{package}.sub"))
    assert line
    for extra in extras:
        assert f"pip install 'foldtune-server[{extra}]'" in line


def test_a_command_names_its_missing_extra(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    for module in [name for name in sys.modules if name.startswith(("launchers", "foldtune.commands"))]:
        monkeypatch.delitem(sys.modules, module)
    result = runner.invoke(app, ["launcher"])
    assert result.exit_code == 2
    assert "foldtune-server[trainers]" in result.stderr


def test_an_unexpected_error_has_a_traceback() -> None:
    assert user_message(ZeroDivisionError()) is None


@pytest.mark.slow
@pytest.mark.parametrize("command", [["status"], ["request", "m"], ["topics", "create"]])
def test_a_missing_broker_is_named_with_setting_and_value(command: list[str], tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    # In a process of its own: a client that is given up leaves its sockets to the collector.
    program = (
        "import sys; from foldtune import kafka; kafka.BOOTSTRAP_SECONDS = 0.2; from foldtune.cli import app; app()"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, *command],
        env=os.environ | {"FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS": address, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.startswith("foldtune: No Kafka broker answers at FOLDTUNE_KAFKA__BOOTSTRAP_SERVERS ")
    assert result.stderr.endswith(f": {address}\n")
    assert len(result.stderr.splitlines()) == 1


def statuses(*states: tuple[State, int | None]) -> list[FineTuneStatus]:
    """Statuses of a request with a warning of its trainer."""
    return [
        FineTuneStatus(
            request_id="r",
            model="m",
            state=state,
            at=now(),
            warnings=("3 examples left out: disliked_without_positive",) if state is not State.ACCEPTED else (),
            progress=Progress(step=step, steps=9, loss=1.5, examples_per_second=1.0, eta_seconds=2.0) if step else None,
        )
        for state, step in states
    ]


HISTORY = (
    *((State.ACCEPTED, None), (State.RUNNING, None), (State.RUNNING, 3), (State.RUNNING, 9)),
    *((State.EVALUATING, None), (State.COMPLETED, None)),
)
WARNING = "warning: 3 examples left out: disliked, without a known positive"


def test_a_status_shows_each_warning_once_and_the_newest_progress(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FoldtuneClient, "statuses", lambda *_, **__: iter(statuses(*HISTORY)))
    shown = runner.invoke(app, ["status", "r"]).stdout
    assert shown.count("running") == 1
    assert "step 9/9" in shown
    assert "details" in shown
    assert shown.count(WARNING) == 1
    assert shown.splitlines()[-1] == f"r: {WARNING}"


def test_a_waiting_request_says_what_it_waits_for(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = FineTuneStatus(request_id="r", model="m", state=State.WAITING, at=now())
    monkeypatch.setattr(FoldtuneClient, "requests", lambda _: {("m", "r"): waiting})
    assert "waits for an earlier request of its model" in runner.invoke(app, ["status"]).stdout


def test_the_table_is_empty_without_requests(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldtuneClient, "requests", lambda _: {})
    result = runner.invoke(app, ["status"])
    assert result.exit_code == 0
    assert "details" in result.stdout


def test_a_request_without_an_id_is_named_after_its_model(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[FineTuneRequested] = []
    monkeypatch.setattr(FoldtuneClient, "request_fine_tune", lambda _, request: sent.append(request))
    shown = [runner.invoke(app, ["request", "m"]).stdout.strip() for _ in range(2)]
    assert shown == [request.request_id for request in sent]
    assert len(set(shown)) == 2
    assert all(name.startswith("cli-m-") for name in shown)
    assert FineTuneRequested.model_validate_json(sent[0].encode()) == sent[0]


@pytest.mark.parametrize("request_id", ["auto-1", "schedule-m-20260101T000000"])
def test_an_id_of_policy_or_schedule_is_refused_before_it_is_sent(runner: CliRunner, request_id: str) -> None:
    result = runner.invoke(app, ["request", "m", "--request-id", request_id])
    assert (result.exit_code, "those of policy and schedule" in result.output) == (2, True), result.output


def test_waiting_shows_each_warning_once(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FoldtuneClient, "request_fine_tune", lambda *_: None)
    monkeypatch.setattr(FoldtuneClient, "statuses", lambda *_, **__: iter(statuses(*HISTORY)))
    result = runner.invoke(app, ["request", "m", "--request-id", "r", "--wait"])
    assert result.exit_code == 0
    assert result.stdout.count(WARNING) == 1
    assert [line.split()[2] for line in result.stdout.splitlines()] == [
        *("accepted", "warning:", "running", "running", "running", "evaluating", "completed")
    ]


def test_stopped_local_servers_are_reported_with_their_folder(runner: CliRunner, tmp_path: Path) -> None:
    result = runner.invoke(app, ["local", "status", "--data-dir", "elsewhere"])
    assert result.exit_code == 3
    assert str(tmp_path / "elsewhere") in result.stdout


def test_starting_local_servers_twice_is_answered_in_one_line(runner: CliRunner, tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    folder.claim()
    try:
        result = runner.invoke(app, ["local", "up", "--detach", "--data-dir", str(tmp_path)])
    finally:
        folder.release()
    assert result.exit_code == 1
    assert result.stderr == f"{DataFolderInUseError(tmp_path)}\n"


def test_exports_are_quoted_for_the_shell() -> None:
    lines = exports({"FOLDTUNE_A": "127.0.0.1:1", "FOLDTUNE_B": "it's $HOME"})
    assert lines[0] == "export FOLDTUNE_A=127.0.0.1:1"
    script = "\n".join((*lines, 'printf %s "$FOLDTUNE_B"'))
    assert subprocess.run(["/bin/sh", "-c", script], capture_output=True, text=True, check=True).stdout == "it's $HOME"


def test_names_are_not_truncated_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "FILE_WIDTH", 30)
    output.print_table(("name", "value"), [("first" * 7, "second " * 20), ("a", "[/b]")])
    shown = capsys.readouterr().out
    assert "first" * 7 in shown
    assert re.sub(r"[^second]", "", shown.split("first" * 7)[1]) == "second" * 20
    assert "[/b]" in shown


def test_an_ended_request_is_not_cancelled(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[tuple[str, str]] = []
    monkeypatch.setattr(FoldtuneClient, "cancel", lambda _, request_id, model, **__: sent.append((model, request_id)))
    ended, running = statuses((State.COMPLETED, None), (State.RUNNING, 1))
    newest = {("m", "r"): ended}
    for model, request_id in (("m", "s"), ("m", "t"), ("n", "t")):
        newest[model, request_id] = running.model_copy(update={"model": model, "request_id": request_id})
    monkeypatch.setattr(FoldtuneClient, "requests", lambda _: newest)
    assert runner.invoke(app, ["cancel", "r"]).stdout == "r has ended already: completed\n"
    assert runner.invoke(app, ["cancel", "r", "--model", "m"]).stdout == "r has ended already: completed\n"
    assert sent == []
    assert runner.invoke(app, ["cancel", "s"]).stdout == "cancellation of s requested\n"
    assert sent == [("m", "s")]
    ambiguous = runner.invoke(app, ["cancel", "t"])
    assert ambiguous.exit_code != 0
    assert "for the models m, n; pass --model" in ambiguous.output
    assert runner.invoke(app, ["cancel", "t", "--model", "n"]).exit_code == 0
    assert sent == [("m", "s"), ("n", "t")]


LOG = {
    "log_id": "l",
    "occurred_at": "2025-01-02T03:04:05Z",
    "agent_id": "a",
    "question": "What does it cost?",
    "folder_id": "pricing",
}


@pytest.fixture
def topics_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """``import`` creates none."""
    monkeypatch.setattr(imports, "create_if_missing", lambda *_: None)


@pytest.mark.usefixtures("topics_exist")
def test_an_import_counts_the_logs_that_are_too_old_for_any_set(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FoldtuneClient, "log", lambda *_: None)
    monkeypatch.setenv("FOLDTUNE_SETS__FOLDERS", json.dumps({"kept": {"max_age": "P3650D"}}))
    old = LOG | {"occurred_at": "2021-01-02T03:04:05Z"}
    batch = {"type": "chat_log_batch", "folder_id": "pricing", "logs": [old, LOG | {"occurred_at": now().isoformat()}]}
    lines = "\n".join(json.dumps(line) for line in (batch, old, old | {"folder_id": "kept"}))
    result = runner.invoke(app, ["import", "logs", "-"], input=lines)
    assert (result.exit_code, result.stdout) == (0, "3 sent, 0 rejected\n")
    assert result.stderr == ("2 logs are older than sets.max_age (365 days or a folder's own) and in no training set\n")


@pytest.mark.usefixtures("topics_exist")
def test_a_batch_of_logs_is_imported_log_by_log(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[str] = []
    monkeypatch.setattr(FoldtuneClient, "log", lambda _, log: sent.append(log.log_id))
    batch = {"type": "chat_log_batch", "folder_id": "pricing", "logs": [LOG, LOG | {"log_id": "m"}]}
    lines = "\n".join(json.dumps(line) for line in (batch, LOG | {"log_id": "n"}))
    result = runner.invoke(app, ["import", "logs", "-"], input=lines)
    assert (result.exit_code, result.stdout) == (0, "2 sent, 0 rejected\n")
    assert sent == ["l", "m", "n"]


RECENT = LOG | {"occurred_at": now().isoformat()}


def imported(runner: CliRunner, monkeypatch: pytest.MonkeyPatch, content: bytes) -> tuple[list[str], list[str]]:
    """The ids that are sent, and what is said."""
    sent: list[str] = []
    monkeypatch.setattr(FoldtuneClient, "log", lambda _, log: sent.append(log.log_id))
    result = runner.invoke(app, ["import", "logs", "-"], input=content)
    return sent, result.stderr.splitlines()


@pytest.mark.usefixtures("topics_exist")
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_lines_and_arrays_are_read_however_they_are_encoded(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    events = [RECENT | {"log_id": name, "question": "Ω ਊ \n?"} for name in ("l", "m", "n")]
    lines = [json.dumps(event, ensure_ascii=False) for event in events]
    for text in (
        "\n".join(lines),
        "\r\n".join((*lines, "", "")),
        json.dumps(events, ensure_ascii=False),
        "\n " + json.dumps(events, indent=2) + "\n",
    ):
        sent, told = imported(runner, monkeypatch, (mark + text).encode(encoding))
        assert (sent, told) == (["l", "m", "n"], [])


@pytest.mark.usefixtures("topics_exist")
def test_an_item_of_an_array_is_refused_alone_and_what_is_no_json_with_all_after_it(
    runner: CliRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = json.dumps(RECENT).encode(), json.dumps(RECENT | {"question": 1}).encode()
    for content, ids, place in (
        (b"[%b, %b, %b]" % (good, bad, good), 2, "item 2: question: "),
        (b"[%b, {nope, %b]" % (good, good), 1, "item 2: event: Invalid JSON"),
        (b"[%b, \xff, %b]" % (good, good), 1, "item 2: event: Invalid JSON"),
        (b"[%b, %b" % (good, good[:-9]), 1, "item 2: event: Invalid JSON"),
        (b"[%b] nope" % good, 1, "item 2: event: Invalid JSON"),
        (b"[%b," % good, 1, "foldtune: the array has no end: after item 1"),
        (b'[%b, "%b"]' % (good, b"\xff" * 9), 1, "item 2: event: Invalid JSON"),
        (b"[" * 100_000, 0, "item 1: event: Invalid JSON"),
    ):
        sent, told = imported(runner, monkeypatch, content)
        assert (len(sent), len(told)) == (ids, 1)
        assert told[0].startswith(place)
    assert imported(runner, monkeypatch, b"[]") == ([], [])


@pytest.mark.usefixtures("topics_exist")
def test_a_file_of_another_form_is_refused_once(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    turns = [{"from": "human", "value": "Who are you?"}, {"from": "gpt", "value": "A model."}]
    chats = [{"id": str(number), "conversations": turns} for number in range(9)]
    lines = "\n".join(map(json.dumps, chats))
    events = "\n".join(json.dumps(RECENT, indent=2) for _ in range(2))
    nothing = "Conversations that do not tell what was retrieved have nothing to learn from"
    for content, words in (
        # As FastChat and others keep conversations, and Langfuse a trace.
        (json.dumps(chats, indent=2), ("item 1 has id, conversations, and not log_id, ", nothing)),
        (lines, ("line 1 has id, conversations, and not log_id, ", nothing)),
        (
            json.dumps({"trace": {}, "observations": []}, indent=2),
            ("the only item has trace, observations, and not log_id",),
        ),
        (
            '{"question": "Why?", "truth": "So."}',
            ("line 1 has question, truth, and not log_id, occurred_at, agent_id, folder",),
        ),
        (events, ("not JSON Lines: each event needs a line of its own",)),
    ):
        sent, (told,) = imported(runner, monkeypatch, content.encode())
        assert sent == []
        assert told.startswith("foldtune: ")
        assert all(part in told for part in words)
        assert (nothing in told) == (nothing in words)
    # One event alone, and items of another form among events.
    assert imported(runner, monkeypatch, json.dumps(RECENT, indent=2).encode()) == (["l"], [])
    sent, reasons = imported(runner, monkeypatch, f"{json.dumps(RECENT)}\n{lines}".encode())
    assert (sent, len(reasons)) == (["l"], 5 * len(chats))


@pytest.mark.usefixtures("topics_exist")
def test_a_time_that_is_a_number_is_refused_with_an_example(runner: CliRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    _, (told,) = imported(runner, monkeypatch, json.dumps(LOG | {"occurred_at": 1_793_491_200}).encode())
    assert told == "line 1: occurred_at: Input should be a time as text, for example 2026-01-31T09:30:00Z"


def test_a_line_for_another_import_is_refused_with_its_name(runner: CliRunner) -> None:
    result = runner.invoke(app, ["import", "logs", "-"], input='{"type": "feedback"}\n{"type": "document_deleted"}\n{}')
    assert result.exit_code == 1
    lines = result.stderr.splitlines()
    assert lines[0] == "line 1: type: 'feedback' is imported with: foldtune import feedback"
    assert lines[1] == "line 2: type: 'document_deleted' is imported with: foldtune import documents"
    assert lines[2].startswith("line 3: log_id: ")


def test_the_events_page_describes_every_type_that_it_names() -> None:
    text = page()
    named = set(re.findall(r"\]\(#([^)]+)\)", text))
    assert {"verdict", "retrievedpassage", "chat_log"} <= named
    assert named <= {line.removeprefix("## ").lower() for line in text.splitlines() if line.startswith("## ")}
    assert (ROOT / "docs" / "events.md").read_text(encoding="utf-8") == text


def test_a_missing_file_is_reported(runner: CliRunner) -> None:
    result = runner.invoke(app, ["import", "logs", "nowhere.jsonl"])
    assert (result.exit_code, result.stderr) == (2, "foldtune: no such file: nowhere.jsonl\n")


@pytest.mark.slow
def test_sigterm_ends_a_command_whose_exit_hangs() -> None:
    program = (
        "import time; from foldtune import cli; cli.EXIT_SECONDS = 0.2\n"
        "def app():\n try:\n  print('runs', flush=True); time.sleep(60)\n finally:\n  time.sleep(60)\n"
        "cli.app = app; cli.main()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout
        assert child.stdout.readline() == "runs\n"
        child.terminate()
        assert child.wait(20) == 128 + signal.SIGTERM
