"""The training loop: batches of questions, each distinct text encoded once a step."""

import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from foldtune.events import FineTuneRequested, Progress
from trainers.data.dataset import Dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Negatives, NegativeSampler
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.loop.checkpoints import Checkpoints, State
from trainers.loop.loss import contrastive_loss
from trainers.loop.optimizer import LEARNING_RATE, UNVALIDATED_LEARNING_RATE, Optimizer
from trainers.loop.tensorboard import TensorBoardLogger
from trainers.loop.validation import Validation

Indices = npt.NDArray[np.int64]

# All texts are embedded after an epoch, for validation and to mine negatives again, only while that costs a small part
# of the epoch: an embedding is one pass forward, a training text is about three.
EMBEDDING_SHARE = 0.25
# Of nDCG on the validation questions. Their mean is uncertain by about .03, and the rate still falls: an epoch that is
# but a little worse than the one before says nothing about the next.
CLEARLY_WORSE = 0.02


class ProgressListener(Protocol):
    """Hears how the training goes, once a step."""

    def stepped(self, progress: Progress) -> None:
        """One more step is done."""


@dataclass
class TrainingRecord:
    """What a training did: the loss of every step, what became of the negatives in each epoch, the nDCG@10 on the
    validation questions after it, and how many steps left float16 and were ``not_taken``.
    """

    losses: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    negatives: list[dict[str, int]] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0
    mined_epochs: int = 0
    not_taken: int = 0
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
    layers: TrainableEncoder,
    dataset: Dataset,
    rows: Indices,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    observer: ProgressListener,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    board: TensorBoardLogger | None = None,
) -> TrainingRecord:
    """Train ``layers`` in place on the examples ``rows``; ``start`` are the embeddings of all questions and all
    passages before the first step. With ``validation`` it ends after an epoch that is clearly worse than one before,
    and the best epoch's weights are kept. With ``checkpoints`` it goes on from where the same job was, to the same end.

    The same data, seed and number of threads give bit-identical weights on a CPU.

    Raises:
        NotFiniteError: embeddings or gradients left the numbers; weights are then of no use.
        InterruptedTrainingError: the process was asked to end, and the state is kept in ``checkpoints``.
    """
    began = time.monotonic()
    course = TrainingRun(layers, dataset, rows, request, start=start, validation=validation)
    if saved := checkpoints.load() if checkpoints else None:
        course.go_on(saved)
    del saved
    record, before = course.record, course.record.seconds
    with (
        reproducible(request.seed),
        checkpoints.between_steps() if checkpoints else nullcontext(),
        layers.pausing(lambda: checkpoints.stepped(course.state)) if checkpoints else nullcontext(),
    ):
        # A former process may have been asked to end in the middle of it.
        course.validate_if_due()
        while not course.ended:
            course.step()
            record.seconds = before + time.monotonic() - began
            progress = _progress(record, course.steps, request)
            observer.stepped(progress)
            if board:
                board.stepped(
                    progress.step,
                    loss=record.losses[-1],
                    mean_positive_probability=record.probabilities[-1],
                    learning_rate=course.descent.rate,
                    examples_per_second=progress.examples_per_second,
                )
            if checkpoints:
                checkpoints.stepped(course.state)
            course.validate_if_due()
    if course.best:
        layers.put_weights(course.best)
    record.seconds = before + time.monotonic() - began
    return record


class TrainingRun:
    """A training on its way; ``state`` is what a checkpoint keeps of it, at any time between two changes of weights.

    ``best`` are the best epoch's weights, where there is validation.
    """

    def __init__(
        self,
        layers: TrainableEncoder,
        dataset: Dataset,
        rows: Indices,
        request: FineTuneRequested,
        *,
        start: tuple[torch.Tensor, torch.Tensor],
        validation: Validation | None,
    ) -> None:
        self._layers, self._dataset, self._rows, self._request = layers, dataset, rows, request
        self._start, self._validation = start, validation
        self._source = NegativeSampler(dataset, rows, WordSets.of(dataset.passages), request.dataset)
        self._mines_again = self._source.needs_mining and cheap_to_embed_all(dataset, len(rows), request)
        self._per_epoch = math.ceil(len(rows) / request.training.batch_size)
        self.steps = request.training.epochs * self._per_epoch
        self.record = TrainingRecord(cached=layers.cached)
        self.descent = Optimizer(
            layers.parameters(),
            self.steps,
            LEARNING_RATE if validation else UNVALIDATED_LEARNING_RATE,
            float16=layers.compute_dtype == torch.float16,
        )
        self.best: list[torch.Tensor] = []
        self._generator = np.random.default_rng(request.seed)
        self._negatives = self._order = np.empty(0, dtype=np.int64)
        # Not in a checkpoint, since they can be made again.
        self._hard: Negatives | None = None
        self._embedded: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def ended(self) -> bool:
        """Whether all steps are done, or the last epoch was clearly worse than one before."""
        return len(self.record.losses) == self.steps or self.record.stopped

    def step(self) -> None:
        """One step, at an epoch's beginning with new negatives and a new order."""
        epoch, batch = divmod(len(self.record.losses), self._per_epoch)
        if batch == 0:
            self._begin(epoch)
        size = self._request.training.batch_size
        picked = self._order[batch * size : (batch + 1) * size]
        loss, probability = self._gradients(self._rows[picked], self._negatives[picked])
        self.record.not_taken += not self.descent.step()
        self.record.losses.append(loss)
        self.record.probabilities.append(probability)

    def _begin(self, epoch: int) -> None:
        if self._mines_again or self._hard is None:
            again = epoch > 0 and self._mines_again
            self._hard = self._source.hard(*((self._embedded or self._layers.embed_all()) if again else self._start))
            self._embedded = None
        chosen = self._source.with_easy(self._hard, self._generator)
        self._negatives, self._order = chosen.passages, self._generator.permutation(len(self._rows))
        self.record.negatives.append(chosen.counts)
        self.record.mined_epochs += self._mines_again or (epoch == 0 and self._source.needs_mining)

    def _gradients(self, rows: Indices, negatives: Indices) -> tuple[float, float]:
        """Gradients of one batch; its loss, and the mean probability of the positives."""
        dataset, weights, device = self._dataset, self._request.weights, self._layers.device
        questions, question_of = np.unique(dataset.question[rows], return_inverse=True)
        positives = dataset.positive[rows]
        passages = np.unique(np.concatenate([positives, negatives[negatives >= 0]]))
        # Another question's passage that some log calls right for this one is no negative of it.
        excluded = dataset.is_known_positive(dataset.question[rows][:, None], passages[None, :])

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
            return loss.value, float(loss.probability.mean())

        return self._layers.backward(questions, passages, loss_of, self.descent.scaled)

    def validate_if_due(self) -> None:
        """After an epoch, measure it, and keep its weights if it is the best one."""
        done = len(self.record.validation)
        if self._validation is None or done == len(self.record.losses) // self._per_epoch:
            return
        # The next epoch's negatives are mined with the same embeddings.
        self._embedded = self._layers.embed_all() if self._mines_again else None
        self.record.validation.append(self._validation.ndcg(self._embedded))
        if self.record.best_epoch == done:
            self.best = self._layers.weights()

    def state(self) -> State:
        """All that a later ``go_on`` needs."""
        facts = {
            "record": asdict(self.record),
            "generator": self._generator.bit_generator.state,
            "best": len(self.best),
        }
        arrays = {"negatives": torch.from_numpy(self._negatives), "order": torch.from_numpy(self._order)}
        kept = {f"best.{number}": one for number, one in enumerate(self.best)}
        return State(self.descent.tensors() | arrays | kept, facts)

    def go_on(self, saved: State) -> None:
        """Continue from there, to the same end."""
        self.record = TrainingRecord(**saved.facts["record"])
        self._generator.bit_generator.state = saved.facts["generator"]
        self._negatives, self._order = saved.tensors["negatives"].numpy(), saved.tensors["order"].numpy()
        self.best = [saved.tensors[f"best.{number}"] for number in range(saved.facts["best"])]
        self.descent.go_on(saved.tensors, len(self.record.losses))


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
