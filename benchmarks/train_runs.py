"""The measured processes of ``benchmarks/train.py``; each prints one JSON object.

- ``st``, ``st_tuned``, ``ours`` (two trainable layers), ``st_tuned_all``, ``ours_all`` (all layers): a training, from
  the texts of rows that sentence-transformers has mined to a model on disk.
- ``st_mining``, ``our_mining``: from the texts of a data set to the hard negatives of its questions, with embedding.
- ``st_search``, ``our_search``: the same for many passages with given, random embeddings; the passages are combined
  from halves of real paragraphs.

Mining is timed from after the model has been loaded; ours includes all exclusions.
"""

import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import datasets
import numpy as np
import numpy.typing as npt
import psutil
import torch
import typer
from sentence_transformers import SentenceTransformer

from benchmarks.foldtune_recipe import SilentListener, create_request
from benchmarks.retrieval import Sample, load, read_lines
from benchmarks.sentence_transformers_recipe import HARD_NEGATIVES, TrainingConfig, load_model, mine_negatives
from benchmarks.sentence_transformers_recipe import train as train_theirs
from foldtune.events import Progress
from foldtune.knobs import DatasetKnobs
from trainers.data.dataset import Dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Negatives, NegativeSampler
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.loop.training import train
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices, length_sorted_batches
from trainers.publishing.artifacts import write_model

BATCH_SIZE = 32
# Of MiniLM's embeddings.
_DIMENSION = 384
# Of all questions and of all passages.
Embeddings = tuple[torch.Tensor, torch.Tensor]


def main(
    kind: str,
    data: Path,
    *,
    documents: Annotated[int, typer.Option(help="Number of documents to mine in.")] = 5_000,
    passages: Annotated[int, typer.Option(help="Number of passages to search in.")] = 100_000,
    questions: Annotated[int, typer.Option(help="Maximum number of questions in mining and search.")] = 10_000,
    epochs: Annotated[int, typer.Option(help="Epochs of a training.")] = 3,
) -> None:
    """Run one process of ``kind``; ``data`` is a JSON Lines file of rows for a training, else a data set's folder."""
    theirs = kind.startswith("st")
    if kind.endswith("_mining"):
        sample = Sample(train=questions, examples=questions, documents=documents)
        result = _mine(load(data, sample).train, theirs=theirs)
    elif kind.endswith("_search"):
        result = _mine(_synthetic_dataset(data, passages, questions), theirs=theirs, embed=False)
    else:
        layers = None if kind.endswith("_all") else 2
        result = _theirs(data, layers, epochs, autocast="tuned" in kind) if theirs else _ours(data, layers, epochs)
    sys.stdout.write(json.dumps(result) + "\n")


def _theirs(rows: Path, layers: int | None, epochs: int, *, autocast: bool) -> dict[str, float]:
    dataset = datasets.Dataset.from_json(str(rows))
    # Both sides must train on the same number of rows.
    config = TrainingConfig(layers, epochs=epochs, batch_size=BATCH_SIZE, autocast=autocast, no_duplicates=False)
    with tempfile.TemporaryDirectory() as folder:
        before = time.process_time()
        summary = train_theirs(packaged_minilm_folder(), dataset, config, Path(folder))
    return {
        "seconds": summary.seconds,
        "cpu_seconds": time.process_time() - before,
        "steps": summary.steps,
        "rows": summary.rows,
        "parameters": summary.parameters,
    }


def _ours(rows_file: Path, layers: int | None, epochs: int) -> dict[str, float]:
    dataset = _dataset([json.loads(line) for line in rows_file.read_text().splitlines()])
    rows = np.arange(len(dataset.question))
    # Impressions precede mined negatives, so both sides train with the same ones.
    request = create_request(
        0,
        {
            "dataset": {"hard_negatives": len(dataset.impressions[0]), "easy_negatives": 0, "exclusion_threshold": 1.0},
            "training": {"trainable_layers": layers or "all", "epochs": epochs, "batch_size": BATCH_SIZE},
        },
    )
    # Embeddings are not needed: mined negatives would only follow the given ones.
    no_embeddings = torch.zeros(len(dataset.questions), 1), torch.zeros(len(dataset.passages), 1)
    _check_negatives(dataset, _sample_negatives(dataset, request.dataset, no_embeddings).passages)
    before, began = time.process_time(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        encoder = Encoder.load(packaged_minilm_folder())
        trainable = _MeasuredEncoder(encoder, dataset, request.training.trainable_layers, Path(folder))
        timer = _StepTimer(trainable)
        record = train(trainable, dataset, rows, request, start=no_embeddings, listener=timer)
        write_model(encoder, Path(folder) / "model")
        seconds = time.perf_counter() - began - timer.overhead
    # Without the first epoch, in which the frozen layers run, too; of a single one, without the first step.
    skipped = len(record.losses) // epochs if epochs > 1 else 1
    rates, plain = np.array(timer.rates[skipped:]), np.array(timer.plain_rates[skipped:])
    return {
        "seconds": seconds,
        "cpu_seconds": time.process_time() - before - timer.overhead_cpu,
        "steps": len(record.losses),
        "rows": epochs * len(rows),
        "parameters": sum(parameter.numel() for parameter in trainable.parameters()),
        "step_seconds": float(np.median(timer.seconds[skipped:])),
        "step_cpu_seconds": float(np.median(timer.cpu_seconds[skipped:])),
        "gemm_share": float(np.median(rates / plain)),
        "gemm_gflops": float(np.median(plain)) / 1e9,
    }


def _check_negatives(dataset: Dataset, selected: npt.NDArray[np.int64]) -> None:
    given = np.array([dataset.impressions[question] for question in dataset.question])
    if not np.array_equal(given, selected):
        differing = int((given != selected).any(axis=1).sum())
        raise ValueError(f"{differing} of {len(given)} rows would be trained with other negatives than the given ones")


def _dataset(rows: list[dict[str, str]], others: Sequence[str] = ()) -> Dataset:
    """Each row is an example; its negatives, if any, are its question's impressions. ``others`` are more passages."""
    questions: dict[str, int] = {}
    passages: dict[str, int] = {}
    pairs, impressions = [], {}
    for row in rows:
        question = questions.setdefault(row["anchor"], len(questions))
        pairs.append((question, passages.setdefault(row["positive"], len(passages))))
        columns = sorted(name for name in row if name.startswith("negative_"))
        impressions[question] = tuple(passages.setdefault(row[name], len(passages)) for name in columns)
    for text in others:
        passages.setdefault(text, len(passages))
    keys = np.array(pairs, dtype=np.int64)
    return Dataset(
        questions=tuple(questions),
        groups=np.arange(len(questions)),
        passages=tuple(passages),
        documents=len(passages),
        searchable=len(passages),
        question=keys[:, 0],
        positive=keys[:, 1],
        strength=np.ones(len(pairs), dtype=np.float32),
        judged=np.zeros(len(pairs), dtype=np.bool_),
        impressions=tuple(impressions[number] for number in range(len(questions))),
        known_positives=np.unique(keys[:, 0] * len(passages) + keys[:, 1]),
    )


class _MeasuredEncoder(TrainableEncoder):
    """Counts the FLOPs of the trained layers in a step: forward, and twice as many backward."""

    began, began_cpu, flops = 0.0, 0.0, 0.0
    # Tokens of each batch of the last step, padding included.
    batch_sizes: tuple[int, ...] = ()

    def embed_batch(self, questions: Indices, passages: Indices) -> torch.Tensor:
        self.began, self.began_cpu = time.perf_counter(), time.process_time()
        lengths = self._tokens.lengths[np.concatenate([questions, passages + self._questions])]
        config = self._encoder.transformer.config
        matrices = 4 * config.hidden_size**2 + 2 * config.hidden_size * config.intermediate_size
        # Queries by keys and attention weights by values; independent of the number of heads.
        attention = 4 * config.hidden_size * (lengths**2).sum()
        layers = sum(name.endswith("attention.self.query.weight") for name in self._trainable_names())
        self.flops = 3.0 * layers * float(2 * matrices * lengths.sum() + attention)
        # The batches in which the texts are embedded.
        self.batch_sizes = tuple(
            len(batch) * int(lengths[batch].max())
            for batch in length_sorted_batches(lengths, self._encoder.batch_tokens)
        )
        return super().embed_batch(questions, passages)

    def _trainable_names(self) -> list[str]:
        return [name for name, parameter in self._encoder.model.named_parameters() if parameter.requires_grad]

    def _synchronize(self) -> None:
        """Wait for the kernels of a GPU."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def plain_flop_rate(self) -> float:
        """FLOPs a second of plain matrix products in the shapes of one layer and the batches of the last step."""
        config, dtype = self._encoder.transformer.config, self.compute_dtype
        hidden, inner = config.hidden_size, config.intermediate_size
        shapes = [(hidden, hidden)] * 4 + [(hidden, inner), (inner, hidden)]
        products = [
            tuple(torch.randn(shape, dtype=dtype, device=self.device) for shape in ((tokens, a), (a, b)))
            for tokens in self.batch_sizes
            for a, b in shapes
        ]
        self._synchronize()
        began = time.perf_counter()
        for left, right in products:
            torch.mm(left, right)
        self._synchronize()
        seconds = time.perf_counter() - began
        return sum(2.0 * len(left) * right.numel() for left, right in products) / seconds


class _StepTimer(SilentListener):
    """Times each step and plain matrix products right after it, so that noise on the machine affects both equally."""

    def __init__(self, encoder: _MeasuredEncoder) -> None:
        self._encoder = encoder
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.rates: list[float] = []
        self.plain_rates: list[float] = []
        self.overhead = self.overhead_cpu = 0.0

    def on_step(self, _: Progress) -> None:
        ended, cpu_before = time.perf_counter(), time.process_time()
        self.seconds.append(ended - self._encoder.began)
        self.cpu_seconds.append(time.process_time() - self._encoder.began_cpu)
        self.rates.append(self._encoder.flops / self.seconds[-1])
        self.plain_rates.append(self._encoder.plain_flop_rate())
        self.overhead += time.perf_counter() - ended
        self.overhead_cpu += time.process_time() - cpu_before


def _mine(dataset: Dataset, *, theirs: bool, embed: bool = True) -> dict[str, float]:
    folder = packaged_minilm_folder()
    model: Any = load_model(folder) if theirs else Encoder.load(folder)
    memory = _PeakMemory()
    embeddings = None if embed else _random_embeddings(dataset)
    cpu_before, began = time.process_time(), time.perf_counter()
    negatives = (_mine_theirs if theirs else _mine_ours)(model, dataset, embeddings)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu_before,
        "peak_mb": memory.peak_growth_mb(),
        "questions": len(dataset.questions),
        "passages": len(dataset.passages),
        "negatives": negatives,
    }


def _mine_theirs(model: SentenceTransformer, dataset: Dataset, embeddings: Embeddings | None) -> int:
    if embeddings:
        queries, passages = (part.numpy() for part in embeddings)
        patched: Any = model
        patched.encode_query = lambda texts, **_: _given_embeddings(queries, texts, dataset.questions)
        patched.encode_document = lambda texts, **_: _given_embeddings(passages, texts, dataset.passages)
    return HARD_NEGATIVES * len(mine_negatives(model, dataset))


def _given_embeddings(
    embeddings: npt.NDArray[np.float32], texts: list[str], known: Sequence[str]
) -> npt.NDArray[np.float32]:
    if texts != list(known):
        raise ValueError("sentence-transformers would embed other texts, or in another order")
    return embeddings


def _mine_ours(encoder: Encoder, dataset: Dataset, embeddings: Embeddings | None) -> int:
    with tempfile.TemporaryDirectory() as spill:
        embeddings = embeddings or TrainableEncoder(encoder, dataset, 2, Path(spill)).embed_all()
        return _sample_negatives(dataset, DatasetKnobs(), embeddings).counts["hard_impressions_and_mined"]


def _sample_negatives(dataset: Dataset, knobs: DatasetKnobs, embeddings: Embeddings) -> Negatives:
    sampler = NegativeSampler(dataset, np.arange(len(dataset.question)), WordSets.of(dataset.passages), knobs)
    return sampler.with_easy(sampler.hard(*embeddings), np.random.default_rng(0))


def _synthetic_dataset(data: Path, passages: int, questions: int) -> Dataset:
    """Real questions, and passages that join one paragraph's first half with another's last; pairs are arbitrary."""
    words = [document["text"].split() for document in read_lines(data / "documents.jsonl.gz")]
    texts: dict[str, None] = {}
    for shift in range(len(words)):
        for index, first in enumerate(words):
            last = words[(index + shift) % len(words)]
            texts[" ".join(first[: len(first) // 2] + last[len(last) // 2 :])] = None
            if len(texts) == passages:
                break
        if len(texts) == passages:
            break
    anchors = list(dict.fromkeys(row["question"] for row in read_lines(data / "questions.jsonl.gz")))[:questions]
    rows = [{"anchor": anchor, "positive": text} for anchor, text in zip(anchors, texts, strict=False)]
    return _dataset(rows, list(texts))


def _random_embeddings(dataset: Dataset) -> Embeddings:
    """Unit vectors; a question's cosine is about .7 with its positive and about 0 with all other passages."""
    generator = torch.Generator().manual_seed(0)
    passages = torch.nn.functional.normalize(torch.randn(len(dataset.passages), _DIMENSION, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(len(dataset.questions), _DIMENSION, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(passages[torch.from_numpy(dataset.positive)] + noise, dim=1)
    return queries, passages


class _PeakMemory:
    """Peak growth of this process's resident memory since construction."""

    def __init__(self) -> None:
        self._before = psutil.Process().memory_info().rss
        # Resets the peak (VmHWM).
        Path("/proc/self/clear_refs").write_text("5")

    def peak_growth_mb(self) -> float:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) / 1024 - self._before / 1024**2


if __name__ == "__main__":
    typer.run(main)
