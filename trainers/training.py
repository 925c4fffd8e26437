"""The training loop: batches of questions, each distinct text encoded once a step, the last layers trained."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from streams.events import FineTuneRequested, Progress
from trainers.dataset import Dataset
from trainers.errors import LossNotFiniteError
from trainers.loss import contrastive_loss
from trainers.negatives import NegativeSource
from trainers.trained_layers import TrainedLayers
from trainers.words import WordSets

Indices = npt.NDArray[np.int64]

# More than the 2e-5 that is usual for a whole model: only its last layers move, and only for some hundred steps. In
# one epoch of the demonstration, 5e-5, 1e-4 and 2e-4 gained 9, 13 and 15 % on true pairs, the last one with a wider
# spread over the questions.
LEARNING_RATE = 1e-4
WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# Negatives are mined again before an epoch only while embedding all texts costs a small part of the epoch: an embedding
# is one pass forward, a training text is about three.
REMINE_SHARE = 0.25


class Observer(Protocol):
    """Hears how the training goes, once a step."""

    def stepped(self, progress: Progress) -> None:
        """One more step is done."""


@dataclass
class TrainingRecord:
    """What a training did: the loss of every step, and what became of the negatives in each epoch."""

    losses: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    negatives: list[dict[str, int]] = field(default_factory=list)
    seconds: float = 0.0
    mined_epochs: int = 0
    cached: bool = False


def train(
    layers: TrainedLayers,
    dataset: Dataset,
    rows: Indices,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    observer: Observer,
) -> TrainingRecord:
    """Train ``layers`` in place on the examples ``rows``; ``start`` are the embeddings of all questions and all
    passages before the first step.

    The same data, seed and number of threads give bit-identical weights on a CPU.

    Raises:
        LossNotFiniteError: the loss left the numbers; weights are then of no use.
    """
    began = time.monotonic()
    generator = np.random.default_rng(request.seed)
    source = NegativeSource(dataset, rows, WordSets.of(dataset.passages), request.dataset)
    steps = request.training.epochs * math.ceil(len(rows) / request.training.batch_size)
    optimizer, schedule = _optimizer(layers.parameters(), steps)
    record = TrainingRecord(cached=layers.cached)
    embedded = start
    remine = _cheap_to_mine_again(dataset, len(rows), request)
    with _reproducible(request.seed):
        for epoch in range(request.training.epochs):
            if epoch and remine:
                embedded = layers.embed_all()
            negatives = source.choose(*embedded, generator)
            record.negatives.append(negatives.counts)
            record.mined_epochs += epoch == 0 or remine
            for batch in _batches(len(rows), request.training.batch_size, generator):
                loss, probability = _step(layers, dataset, rows[batch], negatives.passages[batch], request)
                _descend(layers.parameters(), optimizer, schedule)
                record.losses.append(loss)
                record.probabilities.append(probability)
                seconds = time.monotonic() - began
                observer.stepped(_progress(record, steps, seconds, request))
    record.seconds = time.monotonic() - began
    return record


def _step(
    layers: TrainedLayers, dataset: Dataset, rows: Indices, negatives: Indices, request: FineTuneRequested
) -> tuple[float, float]:
    """Gradients of one batch; its loss, and the mean probability of the positives."""
    questions, question_of = np.unique(dataset.question[rows], return_inverse=True)
    positives = dataset.positive[rows]
    passages = np.unique(np.concatenate([positives, negatives[negatives >= 0]]))
    # Another question's passage that some log calls right for this one is no negative of it.
    excluded = dataset.is_known_positive(dataset.question[rows][:, None], passages[None, :])
    device = layers.device
    weights = request.weights

    def loss_of(queries: torch.Tensor, documents: torch.Tensor) -> tuple[torch.Tensor, float]:
        loss = contrastive_loss(
            queries[torch.from_numpy(question_of).to(device)],
            documents,
            torch.from_numpy(np.searchsorted(passages, positives)).to(device),
            torch.from_numpy(excluded).to(device),
            torch.from_numpy(dataset.strength[rows]).to(device),
            temperature=weights.temperature,
            focus=weights.focus,
            minimum=weights.minimum,
        )
        if not torch.isfinite(loss.value):
            raise LossNotFiniteError(f"weights.temperature = {weights.temperature}")
        return loss.value, float(loss.probability.mean())

    return layers.backward(questions, passages, loss_of)


def _optimizer(
    parameters: list[torch.nn.Parameter], steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    # Biases and the scales of norms are not decayed: they have no surplus of freedom to take back.
    groups = [
        {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, fused=True)
    warm_up = max(1, round(WARM_UP_SHARE * steps))

    def scale(step: int) -> float:
        return min((step + 1) / warm_up, (steps - step) / max(1, steps - warm_up), 1.0)

    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, scale)


def _descend(
    parameters: list[torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
) -> None:
    if not torch.isfinite(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)):
        raise LossNotFiniteError("a gradient is not finite")
    optimizer.step()
    schedule.step()
    optimizer.zero_grad(set_to_none=True)


def _batches(examples: int, batch_size: int, generator: np.random.Generator) -> Iterator[Indices]:
    order = generator.permutation(examples)
    for start in range(0, examples, batch_size):
        yield order[start : start + batch_size]


def _cheap_to_mine_again(dataset: Dataset, examples: int, request: FineTuneRequested) -> bool:
    knobs = request.dataset
    texts_of_epoch = examples * (2 + knobs.hard_negatives + knobs.easy_negatives)
    texts_to_embed = len(dataset.passages) + len(dataset.questions)
    return knobs.hard_negatives > 0 and texts_to_embed <= REMINE_SHARE * 3 * texts_of_epoch


def _progress(record: TrainingRecord, steps: int, seconds: float, request: FineTuneRequested) -> Progress:
    done = len(record.losses)
    recent = record.losses[-20:]
    return Progress(
        step=done,
        steps=steps,
        loss=sum(recent) / len(recent),
        examples_per_second=done * request.training.batch_size / max(seconds, 1e-9),
        eta_seconds=(steps - done) * seconds / done,
    )


class _reproducible:  # noqa: N801 - reads as a statement
    """Fixed seeds and, on the CPU, only algorithms whose sums always run in the same order."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._before = (False, True)

    def __enter__(self) -> None:
        torch.manual_seed(self._seed)
        memory: Any = torch.utils.deterministic
        self._before = (torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory)
        torch.use_deterministic_algorithms(not torch.cuda.is_available())
        # The mode would also write over all fresh memory, only to show reads of what was never written.
        memory.fill_uninitialized_memory = False

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(self._before[0])
        memory: Any = torch.utils.deterministic
        memory.fill_uninitialized_memory = self._before[1]
