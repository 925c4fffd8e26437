"""Writes a trained model's folder: weights, tokenizer, encoding config, model card, metrics and curves."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from foldtune import excerpts
from foldtune.events import FineTuneRequested, ModelReady
from foldtune.object_keys import OTHER_FOLDERS
from trainers.model.base_models import copy_configuration
from trainers.model.encoder import Encoder
from trainers.publishing.results import Results

_SMOOTHED_STEPS = 10
# In the card; all of them are in metrics.json.
_MAX_FOLDERS, _MAX_NAME = 20, 100


def write_model(encoder: Encoder, folder: Path) -> None:
    """Write the trained weights, and the base model's configuration as it is."""
    encoder.save_weights(folder)
    copy_configuration(encoder.folder, folder)


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Write ``metrics.json``."""
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n")


def write_other_folders(folder: Path, folders: dict[str, Any]) -> None:
    """Write the metrics of each folder that the request does not name, if there are any; for operators only."""
    if folders:
        (folder / OTHER_FOLDERS).write_text(json.dumps(folders, indent=2, allow_nan=False) + "\n")


def write_loss_curve(folder: Path, losses: Sequence[float]) -> None:
    """Write ``training.json`` and ``training.png``: the loss of every step and its moving average."""
    means = [
        sum(losses[max(0, step - _SMOOTHED_STEPS) : step]) / min(step, _SMOOTHED_STEPS)
        for step in range(1, len(losses) + 1)
    ]
    (folder / "training.json").write_text(json.dumps({"loss": list(losses), "mean_of_10": means}) + "\n")
    steps = range(1, len(losses) + 1)
    with _plot(folder / "training.png", "step", "loss") as axes:
        axes.plot(steps, losses, color="0.75", linewidth=0.8, label="step")
        axes.plot(steps, means, color="tab:blue", label=f"mean of {_SMOOTHED_STEPS}")


def write_recall_curve(folder: Path, before: Sequence[float], after: Sequence[float], *, baseline: str) -> None:
    """Write ``recall.json`` and ``recall.png``: recall@1, recall@2 … of ``baseline`` and of the new model."""
    ranks = list(range(1, len(after) + 1))
    curves = {"k": ranks, "before": list(before), "after": list(after)}
    (folder / "recall.json").write_text(json.dumps(curves) + "\n")
    with _plot(folder / "recall.png", "k", "recall@k") as axes:
        axes.plot(ranks, before, color="0.55", marker="o", markersize=3, label=baseline)
        axes.plot(ranks, after, color="tab:blue", marker="o", markersize=3, label="this model")
        axes.set(xticks=ranks, ylim=(0, 1))


@contextmanager
def _plot(path: Path, xlabel: str, ylabel: str) -> Iterator[Axes]:
    with mpl.rc_context({"font.size": 9}):
        figure = Figure(figsize=(7, 3.5), layout="constrained")
        axes = figure.subplots()
        yield axes
        axes.set(xlabel=xlabel, ylabel=ylabel)
        axes.legend(frameon=False)
        figure.savefig(path, dpi=120)


def write_card(
    folder: Path,
    ready: ModelReady,
    request: FineTuneRequested,
    results: Results,
    *,
    encoder: Encoder,
    training_tokens: int,
    folders: int,
    labels: Mapping[str, int],
    window: tuple[datetime, datetime],
    licence: str | None,
    warnings: Sequence[str],
) -> None:
    """Write the model card, ``README.md``; ``labels`` are the numbers of examples by label, ``window`` is their time
    range, ``licence`` the base model's.
    """
    template = (Path(__file__).parent / "model_card.md.jinja").read_text()
    before, after = ready.metrics_before.model_dump(), ready.metrics_after.model_dump()
    metrics = [(name, before[name], after[name]) for name in before if name not in {"questions", "documents"}]
    sections = {"dataset": request.dataset, "training": request.training, "weights": request.weights}
    knobs = [(f"{section}.{name}", value) for section, group in sections.items() for name, value in group]
    gains = results.after.held_out.ndcg - results.baseline.measures.held_out.ndcg
    environment = jinja2.Environment(autoescape=False, undefined=jinja2.StrictUndefined)  # noqa: S701 - Markdown
    card = environment.from_string(template).render(
        ready=ready,
        request=request,
        baseline=results.baseline.name,
        started_from=results.started_from.name,
        max_tokens=encoder.max_tokens,
        training_tokens=training_tokens,
        description=encoder.description(),
        folders=folders,
        labels=", ".join(f"{count} {label}" for label, count in sorted(labels.items(), key=lambda item: -item[1])),
        by_folder=_largest(results.folders),
        gains=[int((np.sign(gains) == sign).sum()) for sign in (1, 0, -1)],
        window=[f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" for moment in window],
        licence=licence,
        examples=len(results.measured_on.parts.train),
        validation=results.validation(),
        interpolation=results.interpolation,
        lost=results.lost,
        warnings=warnings,
        metrics=metrics,
        knobs=knobs,
    )
    (folder / "README.md").write_text(card + "\n")


def _largest(folders: dict[str, Any]) -> list[tuple[str, int, float, float]]:
    """Name for Markdown, number of questions, and nDCG@10 before and after of the folders with most questions."""
    rows = sorted(folders.items(), key=lambda item: -item[1]["questions"])[:_MAX_FOLDERS]
    return [
        (_cell(folder), values["questions"], values["before"]["ndcg_at_10"], values["after"]["ndcg_at_10"])
        for folder, values in rows
    ]


def _cell(text: str) -> str:
    """Text of whatever kind as the content of a table's cell."""
    return excerpts.excerpt(re.sub(r"[^\w .,:/@-]", lambda found: f"&#{ord(found[0])};", text), _MAX_NAME)
