"""The training loop: batches of questions, each distinct text encoded once a step."""

import math
import time
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from streams.events import FineTuneRequested, Progress
from trainers.board import Board
from trainers.checkpoints import Checkpoints, State
from trainers.dataset import Dataset
from trainers.errors import LossNotFiniteError
from trainers.loss import contrastive_loss
from trainers.negatives import Negatives, NegativeSource
from trainers.selection import Validation
from trainers.trained_layers import TrainedLayers
from trainers.words import WordSets

Indices = npt.NDArray[np.int64]

# More than the 2e-5 that is usual: an agent's logs are a training of some hundred steps, and going back towards the
# start (``selection.merge_back``) takes what was too much. In one epoch of the demonstration (two layers), 5e-5, 1e-4
# and 2e-4 gained 9, 13 and 15 % on true pairs, the last one with a wider spread over the questions. With all layers,
# 2e-4 finds .005 more than 1e-4 on one set, and on another loses .036 of validation in an epoch.
LEARNING_RATE = 1e-4
# Where there is no validation to go back by (docs/decisions.md).
UNVALIDATED_LEARNING_RATE = 5e-5
WARM_UP_SHARE = 0.1
WEIGHT_DECAY = 0.01
MAX_GRADIENT_NORM = 1.0
# All texts are embedded after an epoch, for validation and to mine negatives again, only while that costs a small part
# of the epoch: an embedding is one pass forward, a training text is about three.
EMBEDDING_SHARE = 0.25
# Of nDCG on the validation questions. Their mean is uncertain by about .03, and the rate still falls: an epoch that is
# but a little worse than the one before says nothing about the next.
CLEARLY_WORSE = 0.02


class Observer(Protocol):
    """Hears how the training goes, once a step."""

    def stepped(self, progress: Progress) -> None:
        """One more step is done."""


@dataclass
class TrainingRecord:
    """What a training did: the loss of every step, what became of the negatives in each epoch, and the nDCG@10 on the
    validation questions after it.
    """

    losses: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    negatives: list[dict[str, int]] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0
    mined_epochs: int = 0
    cached: bool = False

    @property
    def best_epoch(self) -> int | None:
        """From 0, the one whose weights are kept; the first of equally good ones, none without validation."""
        return self.validation.index(max(self.validation)) if self.validation else None

    @property
    def stopped(self) -> bool:
        """Whether the last epoch was clearly worse than one before."""
        return bool(self.validation) and self.validation[-1] < max(self.validation) - CLEARLY_WORSE


def train(
    layers: TrainedLayers,
    dataset: Dataset,
    rows: Indices,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    observer: Observer,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    board: Board | None = None,
) -> TrainingRecord:
    """Train ``layers`` in place on the examples ``rows``; ``start`` are the embeddings of all questions and all
    passages before the first step. With ``validation`` it ends after an epoch that is clearly worse than one before,
    and the best epoch's weights are kept. With ``checkpoints`` it goes on from where the same job was, to the same end.

    The same data, seed and number of threads give bit-identical weights on a CPU.

    Raises:
        LossNotFiniteError: the loss left the numbers; weights are then of no use.
        InterruptedTrainingError: the process was asked to end, and the state is kept in ``checkpoints``.
    """
    began = time.monotonic()
    source = NegativeSource(dataset, rows, WordSets.of(dataset.passages), request.dataset)
    batch_size = request.training.batch_size
    per_epoch = math.ceil(len(rows) / batch_size)
    steps = request.training.epochs * per_epoch
    course = _Course(
        TrainingRecord(cached=layers.cached),
        _Descent(layers.parameters(), steps, LEARNING_RATE if validation else UNVALIDATED_LEARNING_RATE),
        np.random.default_rng(request.seed),
    )
    if saved := checkpoints.load() if checkpoints else None:
        course.go_on(saved)
    del saved
    record = course.record
    mines = source.wants_mining()
    remine = mines and cheap_to_embed_all(dataset, len(rows), request)
    hard: Negatives | None = None
    with reproducible(request.seed), checkpoints.between_steps() if checkpoints else nullcontext():
        before = record.seconds
        embedded: tuple[torch.Tensor, torch.Tensor] | None = None
        for step in range(len(record.losses), steps):
            if record.stopped:
                break
            epoch, batch = divmod(step, per_epoch)
            if batch == 0:
                if remine or hard is None:
                    hard = source.hard(*((embedded or layers.embed_all()) if epoch and remine else start))
                    embedded = None
                chosen = source.with_easy(hard, course.generator)
                course.negatives, course.order = chosen.passages, course.generator.permutation(len(rows))
                record.negatives.append(chosen.counts)
                record.mined_epochs += remine or (mines and epoch == 0)
            picked = course.order[batch * batch_size : (batch + 1) * batch_size]
            loss, probability = _step(layers, dataset, rows[picked], course.negatives[picked], request)
            course.descent.step()
            record.losses.append(loss)
            record.probabilities.append(probability)
            if validation and batch == per_epoch - 1:
                # The next epoch's negatives are mined with the same embeddings.
                embedded = layers.embed_all() if remine else None
                record.validation.append(validation.ndcg(embedded))
                course.best = layers.weights() if record.best_epoch == epoch else course.best
            record.seconds = before + time.monotonic() - began
            progress = _progress(record, steps, request)
            observer.stepped(progress)
            if board:
                board.stepped(
                    progress.step,
                    loss=loss,
                    mean_positive_probability=probability,
                    learning_rate=course.descent.rate,
                    examples_per_second=progress.examples_per_second,
                )
            if checkpoints:
                checkpoints.stepped(course.state)
    if course.best:
        layers.put_weights(course.best)
    return record


@dataclass
class _Course:
    """What changes from step to step, and is kept in a checkpoint; ``negatives`` and ``order`` are those of an epoch,
    ``best`` are the best epoch's weights.
    """

    record: TrainingRecord
    descent: "_Descent"
    generator: np.random.Generator
    negatives: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    order: Indices = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    best: list[torch.Tensor] = field(default_factory=list)

    def state(self) -> State:
        facts = {
            "record": asdict(self.record),
            "generator": self.generator.bit_generator.state,
            "best": len(self.best),
        }
        arrays = {"negatives": torch.from_numpy(self.negatives), "order": torch.from_numpy(self.order)}
        kept = {f"best.{number}": one for number, one in enumerate(self.best)}
        return State(self.descent.tensors() | arrays | kept, facts)

    def go_on(self, saved: State) -> None:
        self.record = TrainingRecord(**saved.facts["record"])
        self.generator.bit_generator.state = saved.facts["generator"]
        self.negatives, self.order = saved.tensors["negatives"].numpy(), saved.tensors["order"].numpy()
        self.best = [saved.tensors[f"best.{number}"] for number in range(saved.facts["best"])]
        self.descent.go_on(saved.tensors, len(self.record.losses))


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


class _Descent:
    """AdamW with a linear warm-up to the rate ``peak`` and a linear way down."""

    def __init__(self, parameters: list[torch.nn.Parameter], steps: int, peak: float) -> None:
        self._parameters, self._steps, self._peak, self._done = parameters, steps, peak, 0
        self.rate = 0.0
        # Biases and the scales of norms are not decayed: they have no surplus of freedom to take back.
        groups = [
            {"params": [one for one in parameters if one.ndim >= 2], "weight_decay": WEIGHT_DECAY},
            {"params": [one for one in parameters if one.ndim < 2], "weight_decay": 0.0},
        ]
        self._optimizer = torch.optim.AdamW(groups, lr=peak, fused=True)

    def step(self) -> None:
        """Go down along the gradients, which are then used up."""
        if not torch.isfinite(torch.nn.utils.clip_grad_norm_(self._parameters, MAX_GRADIENT_NORM)):
            raise LossNotFiniteError("a gradient is not finite")
        warm_up = max(1, round(WARM_UP_SHARE * self._steps))
        scale = min((self._done + 1) / warm_up, (self._steps - self._done) / max(1, self._steps - warm_up), 1.0)
        self.rate = self._peak * scale
        for group in self._optimizer.param_groups:
            group["lr"] = self.rate
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._done += 1

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that a later ``go_on`` needs, by name."""
        found = {f"parameter.{number}": one.data for number, one in enumerate(self._parameters)}
        for number, state in self._optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
        return found

    def go_on(self, tensors: dict[str, torch.Tensor], done: int) -> None:
        """Continue after ``done`` steps."""
        for number, one in enumerate(self._parameters):
            one.data.copy_(tensors[f"parameter.{number}"])
        state: dict[int, dict[str, torch.Tensor]] = defaultdict(dict)
        for name, value in tensors.items():
            if name.startswith("optimizer."):
                _, place, part = name.split(".")
                state[int(place)][part] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": state})
        self._done = done


def cheap_to_embed_all(dataset: Dataset, examples: int, request: FineTuneRequested) -> bool:
    """Whether embedding every text costs a small part of an epoch of so many ``examples``."""
    texts_of_epoch = examples * (2 + request.dataset.hard_negatives + request.dataset.easy_negatives)
    texts_to_embed = len(dataset.passages) + len(dataset.questions)
    return texts_to_embed <= EMBEDDING_SHARE * 3 * texts_of_epoch


def _progress(record: TrainingRecord, steps: int, request: FineTuneRequested) -> Progress:
    done, seconds = len(record.losses), record.seconds
    recent = record.losses[-20:]
    return Progress(
        step=done,
        steps=steps,
        loss=sum(recent) / len(recent),
        examples_per_second=done * request.training.batch_size / max(seconds, 1e-9),
        eta_seconds=(steps - done) * seconds / done,
    )


class reproducible:  # noqa: N801 - reads as a statement
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
