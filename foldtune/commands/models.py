"""``foldtune models``."""

import typer

from foldtune.client.client import FoldtuneClient
from foldtune.commands.output import AsJson, print_event, print_table
from foldtune.settings import load_settings

app = typer.Typer(add_completion=False)


@app.command()
def models(as_json: AsJson = False) -> None:
    """Show the newest announced version of every model.

    At its address lies evaluation.parquet: each held-out question, and what was found before and after.
    """
    with FoldtuneClient(load_settings()) as client:
        newest = sorted(client.models().values(), key=lambda ready: ready.model)
    if as_json:
        for ready in newest:
            print_event(ready)
        return
    rows = [
        (
            ready.model,
            ready.version,
            f"{ready.metrics_before.ndcg_at_10:.3f} → {ready.metrics_after.ndcg_at_10:.3f}",
            "{:+.3f} to {:+.3f}".format(*ready.gate.ndcg_gain_interval),
            "yes" if ready.requires_reindex else "no",
            ready.model_uri,
        )
        for ready in newest
    ]
    print_table(("model", "version", "nDCG@10", "95% of the gain", "reindex", "address"), rows)
