"""``foldtune policy``."""

import json
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.errors import UserError
from foldtune.commands.output import AsJson, print_event, print_table, printable
from foldtune.events import PolicyDecided, RetrainingPolicy, now
from foldtune.policy import FROM_SETTINGS
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False, help="Automatic retraining, by model.", no_args_is_help=True)

ModelArgument = Annotated[str, typer.Argument(metavar="MODEL")]
By = Annotated[str, typer.Option(help="Who does it: a pseudonym or a team.")]
Comment = Annotated[str | None, typer.Option(help="Why.")]
COMMAND_LINE = "command line"
_MINUTE = "minutes"


@app.callback()
def _group() -> None:
    """Automatic retraining, by model."""


@app.command()
def show(model: Annotated[str | None, typer.Argument(metavar="[MODEL]")] = None, as_json: AsJson = False) -> None:
    """Show the policy of every model, or of one."""
    with FoldtuneClient(load_settings()) as client:
        policies = [policy for name, policy in sorted(client.policies().items()) if model in {None, name}]
    if model is not None and not policies:
        raise UserError(f"model {model!r} has no policy")
    if as_json:
        for policy in policies:
            print_event(policy)
        return
    rows = [
        (
            policy.model,
            "paused" if policy.paused else "on" if policy.rules else "off",
            "settings" if policy.origin == FROM_SETTINGS else f"{policy.by}, {policy.at:%Y-%m-%d %H:%M}",
            rule.name if rule else "",
            json.dumps(rule.model_dump(mode="json", exclude_defaults=True, exclude={"name"})) if rule else "",
        )
        for policy in policies
        for rule in (policy.rules or (None,))
    ]
    print_table(("model", "state", "set by", "rule", "what it says"), rows)


@app.command("set")
def set_policy(
    model: ModelArgument,
    rules: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="JSON or TOML with a list 'rules', as in foldtune.toml; - reads JSON."),
    ],
    by: By = COMMAND_LINE,
    comment: Comment = None,
) -> None:
    """Set the policy of a model; it replaces the one before, and what the settings say, as a whole.

    An empty list turns it off.
    """
    content = _content(rules)
    with FoldtuneClient(load_settings()) as client:
        event = {"model": model, "at": now().isoformat(), "by": by, "comment": comment, "origin": "person"} | content
        # As JSON: types are those of the event.
        client.set_policy(RetrainingPolicy.model_validate_json(json.dumps(event)))
    typer.echo(f"policy of {model} set; 'foldtune policy explain {model}' shows what it decides")


@app.command()
def pause(model: ModelArgument, by: By = COMMAND_LINE, comment: Comment = None) -> None:
    """Request no training of a model until 'resume'."""
    _change(model, by, comment, paused=True)
    typer.echo(f"policy of {model} paused")


@app.command()
def resume(model: ModelArgument, by: By = COMMAND_LINE, comment: Comment = None) -> None:
    """Undo 'pause'."""
    _change(model, by, comment, paused=False)
    typer.echo(f"policy of {model} resumed")


@app.command()
def reset(model: ModelArgument, by: By = COMMAND_LINE, comment: Comment = None) -> None:
    """Go back to what the workers' settings say (policy.rules), whatever was set."""
    _change(model, by, comment, paused=False, origin=FROM_SETTINGS, rules=())
    typer.echo(f"policy of {model} is that of the settings again")


@app.command()
def explain(
    model: ModelArgument,
    last: Annotated[int, typer.Option(min=1, help="Show so many of the last decisions, too.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Show which rule waits for what: the figure, its bound, since when, what is in the way, and when it may change."""
    with FoldtuneClient(load_settings()) as client:
        decisions = client.policy_decisions(model)
    if not decisions:
        raise UserError(f"nothing was decided on model {model!r}: it has no policy, or no worker has read it yet")
    if as_json:
        for decided in decisions[-last:]:
            print_event(decided)
        return
    for decided in decisions[-last:-1]:
        typer.echo(_headline(decided))
    for line in explanation(decisions[-1]):
        typer.echo(printable(line))


def explanation(decided: PolicyDecided) -> list[str]:
    """A decision in lines for people."""
    lines = [_headline(decided)]
    for each in decided.rules:
        lines.append(f"rule {each.rule}")
        for condition in each.conditions:
            since = f", since {condition.since.isoformat(timespec=_MINUTE)}" if condition.since else ""
            lines.append(f"  {'met' if condition.met else 'not met'}: {condition.text}{since}")
        for block in each.blocks:
            until = f", until {block.until.isoformat(timespec=_MINUTE)}" if block.until else ""
            lines.append(f"  {block.block}: {block.text}{until}")
    if decided.next_at:
        lines.append(f"may change at {decided.next_at.isoformat(timespec=_MINUTE)}")
    lines.append(f"figures of {decided.at.isoformat(timespec='seconds')}")
    return lines


def _headline(decided: PolicyDecided) -> str:
    rule = f" by rule {decided.rule}" if decided.rule else ""
    request = f", request {decided.request_id}" if decided.request_id else ""
    since = decided.since.isoformat(timespec=_MINUTE)
    return f"{decided.model}: {decided.decision}{rule}{request}, since {since}"


def _change(model: str, by: str, comment: str | None, **changes: Any) -> None:
    with FoldtuneClient(load_settings()) as client:
        policy = client.policies().get(model)
        if policy is None:
            raise UserError(f"model {model!r} has no policy")
        client.set_policy(policy.model_copy(update={"at": now(), "by": by, "comment": comment, **changes}))


def _content(path: Path) -> dict[str, Any]:
    """The rules of a file; ``paused`` may be there, too."""
    try:
        text = sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
        content = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    if isinstance(content, list):
        content = {"rules": content}
    if not isinstance(content, dict) or not isinstance(content.get("rules"), list):
        raise UserError(f"{path}: should have a list 'rules'")
    if unknown := sorted(set(content) - {"rules", "paused"}):
        raise UserError(f"{path}: unknown field {unknown[0]!r}, should be rules or paused")
    return content
