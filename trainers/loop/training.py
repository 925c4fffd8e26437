"""The training loop: steps, epochs, validation, checkpoints."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from foldtune.events import FineTuneRequested, Progress
from trainers.data.dataset import Dataset
from trainers.data.near_duplicates import WordSets
from trainers.data.negatives import Negatives, NegativeSampler
from trainers.engine.trainable_encoder import TrainableEncoder
from trainers.loop.checkpoints import Checkpoints, TrainingState
from trainers.loop.loss import contrastive_loss
from trainers.loop.optimizer import LEARNING_RATE, UNVALIDATED_LEARNING_RATE, Optimizer
from trainers.loop.tensorboard import TensorBoardLogger
from trainers.loop.validation import Validation
from trainers.model.tokens import Indices

# All texts are embedded after each epoch, for validation and to mine negatives again, only if that costs at most this
# share of the epoch: embedding is one forward pass, training a text costs about three.
EMBEDDING_SHARE = 0.25
# Difference of nDCG on the validation questions. The standard error of their mean is about .03, and the learning rate
# still falls: a slightly worse epoch does not predict the next one.
CLEARLY_WORSE = 0.02
# Of ``TrainingRecord.negatives``: pairs in a batch that the exclusion threshold excludes, positives aside.
NEAR_IN_BATCH = "in_batch_near_positive_by_words"


class ProgressListener(Protocol):
    """Receives the progress of a training."""

    def on_step(self, progress: Progress) -> None:
        """Called after each step."""


@dataclass
class TrainingRecord:
    """What happened in a training. By step: ``losses`` and ``probabilities`` (mean probability of the positives). By
    epoch: counts of ``negatives`` by origin, and ``validation``, the nDCG@10 after it. In total: epochs whose hard
    negatives were mined, and steps skipped because their gradients exceeded float16.
    """

    losses: list[float] = field(default_factory=list)
    probabilities: list[float] = field(default_factory=list)
    negatives: list[dict[str, int]] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0
    mined_epochs: int = 0
    skipped_steps: int = 0
    cached: bool = False

    @property
    def best_epoch(self) -> int | None:
        """From 0, the epoch with the best nDCG, the first of equal ones; None without validation."""
        return self.validation.index(max(self.validation)) if self.validation else None

    @property
    def stopped(self) -> bool:
        """Whether the last epoch was clearly worse than one before, which stops the training early."""
        return bool(self.validation) and self.validation[-1] < max(self.validation) - CLEARLY_WORSE


def train(
    encoder: TrainableEncoder,
    dataset: Dataset,
    rows: Indices,
    request: FineTuneRequested,
    *,
    start: tuple[torch.Tensor, torch.Tensor],
    listener: ProgressListener,
    validation: Validation | None = None,
    checkpoints: Checkpoints | None = None,
    tensorboard: TensorBoardLogger | None = None,
) -> TrainingRecord:
    """Train ``encoder`` in place on the examples ``rows``; ``start`` are the embeddings of all questions and of all
    passages before the first step. With ``validation``, training stops after an epoch that is clearly worse than one
    before, and the best epoch's weights are restored. With ``checkpoints``, it resumes where the same job was
    interrupted, with the same result.

    The same data, seed and number of threads give bit-identical weights on a CPU.

    Raises:
        NotFiniteError: embeddings or gradients are not finite; the weights are then useless.
        InterruptedTrainingError: the process received SIGTERM; the state is saved in ``checkpoints``.
    """
    began = time.monotonic()
    run = TrainingRun(encoder, dataset, rows, request, start=start, validation=validation, checkpoints=checkpoints)
    if state := checkpoints.load() if checkpoints else None:
        run.load_state_dict(state)
    del state
    record, seconds_before = run.record, run.record.seconds
    with reproducible(request.seed), checkpoints.sigterm_deferred() if checkpoints else nullcontext():
        # The checkpoint may have been saved between an epoch and its validation.
        run.validate_if_due()
        trained = not run.finished
        while not run.finished:
            run.step()
            record.seconds = seconds_before + time.monotonic() - began
            progress = _progress(record, run.steps, request)
            listener.on_step(progress)
            if tensorboard:
                tensorboard.log_step(
                    progress.step,
                    loss=record.losses[-1],
                    mean_positive_probability=record.probabilities[-1],
                    learning_rate=run.optimizer.learning_rate,
                    examples_per_second=progress.examples_per_second,
                )
            run.checkpoint_if_due()
            run.validate_if_due()
        if checkpoints and trained:
            # Whatever happens to the evaluation or the upload, the training need not be repeated.
            checkpoints.save(run.state_dict())
    if run.best_weights:
        encoder.load_weights(run.best_weights)
    record.seconds = seconds_before + time.monotonic() - began
    return record


@dataclass(frozen=True)
class Batch:
    """The distinct texts of ``b`` examples, ``questions`` and ``passages`` by index, and the inputs of the loss:
    ``query`` and ``positive`` ``[b]`` are positions in them, ``excluded`` is ``[b, passages]``, ``strength`` ``[b]``.
    """

    questions: Indices
    passages: Indices
    query: torch.Tensor
    positive: torch.Tensor
    excluded: torch.Tensor
    strength: torch.Tensor


class TrainingRun:
    """The state of a training and its transitions: a step, and the validation after an epoch.

    ``state_dict`` may be saved whenever the weights do not change, in the middle of a validation, too.
    """

    def __init__(
        self,
        encoder: TrainableEncoder,
        dataset: Dataset,
        rows: Indices,
        request: FineTuneRequested,
        *,
        start: tuple[torch.Tensor, torch.Tensor],
        validation: Validation | None,
        checkpoints: Checkpoints | None,
    ) -> None:
        self._encoder, self._dataset, self._rows, self._request = encoder, dataset, rows, request
        self._start, self._validation, self._checkpoints = start, validation, checkpoints
        self._source = NegativeSampler(dataset, rows, WordSets.of(dataset.passages), request.dataset)
        self._mines_again = self._source.needs_mining and cheap_to_embed_all(dataset, len(rows), request)
        self._steps_per_epoch = math.ceil(len(rows) / request.training.batch_size)
        self.steps = request.training.epochs * self._steps_per_epoch
        self.record = TrainingRecord(cached=encoder.cached)
        self.optimizer = Optimizer(
            encoder.parameters(),
            self.steps,
            LEARNING_RATE if validation else UNVALIDATED_LEARNING_RATE,
            float16=encoder.compute_dtype == torch.float16,
        )
        self.best_weights: list[torch.Tensor] = []
        self._generator = np.random.default_rng(request.seed)
        self._negatives = self._order = np.empty(0, dtype=np.int64)
        # Not in the checkpoint, since they can be computed again.
        self._hard: Negatives | None = None
        self._embeddings: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or the last epoch was clearly worse than one before."""
        return len(self.record.losses) == self.steps or self.record.stopped

    def step(self) -> None:
        """Forward pass, loss, backward pass and optimizer step of the next batch."""
        batch, weights = self._next_batch(), self._request.weights
        embeddings = self._encoder.embed_batch(batch.questions, batch.passages)
        queries, passages = embeddings[: len(batch.questions)], embeddings[len(batch.questions) :]
        loss = contrastive_loss(
            queries[batch.query],
            passages,
            batch.positive,
            batch.excluded,
            batch.strength,
            temperature=weights.temperature,
            focus=weights.focus,
            minimum=weights.minimum,
            cosine=self._encoder.cosine,
        )
        # The backward pass starts at the embeddings, so that the loss sees the whole batch, also where the model's
        # graph is rebuilt part by part or lies on other ranks.
        (gradient,) = torch.autograd.grad(loss.value, embeddings)
        self._encoder.backward(self.optimizer.scale(gradient))
        self.record.skipped_steps += not self.optimizer.step()
        self.record.losses.append(float(loss.value.detach()))
        self.record.probabilities.append(float(loss.probability.mean()))

    def validate_if_due(self) -> None:
        """After an epoch, measure nDCG@10, and copy the weights if they are the best so far."""
        validation, epoch = self._validation, len(self.record.validation)
        if validation is None or epoch == len(self.record.losses) // self._steps_per_epoch:
            return
        if self._mines_again:
            # The next epoch's negatives are mined with the same embeddings.
            self._embeddings = self._embed(*self._encoder.all_texts())
            embeddings = validation.select(*self._embeddings)
        else:
            embeddings = self._embed(validation.questions, validation.passages)
        self.record.validation.append(validation.ndcg(embeddings))
        if self.record.best_epoch == epoch:
            self.best_weights = self._encoder.weights()

    def checkpoint_if_due(self) -> None:
        """Save the state if the interval has passed or the process received SIGTERM.

        Raises:
            InterruptedTrainingError: it was SIGTERM; the state is saved.
        """
        if self._checkpoints and self._checkpoints.due:
            self._checkpoints.save(self.state_dict())

    def state_dict(self) -> TrainingState:
        """Everything that ``load_state_dict`` needs."""
        facts = {
            "record": asdict(self.record),
            "generator": self._generator.bit_generator.state,
            "best": len(self.best_weights),
        }
        arrays = {"negatives": torch.from_numpy(self._negatives), "order": torch.from_numpy(self._order)}
        best = {f"best.{index}": weights for index, weights in enumerate(self.best_weights)}
        optimizer = self.optimizer.state_dict()
        if self.finished:
            # Without the moments, two thirds of the size: no step follows.
            optimizer = {name: tensor for name, tensor in optimizer.items() if not name.startswith("optimizer.")}
        return TrainingState(optimizer | arrays | best, facts)

    def load_state_dict(self, state: TrainingState) -> None:
        """Continue from ``state``, with the same result as without the interruption."""
        self.record = TrainingRecord(**state.facts["record"])
        self._generator.bit_generator.state = state.facts["generator"]
        self._negatives, self._order = state.tensors["negatives"].numpy(), state.tensors["order"].numpy()
        self.best_weights = [state.tensors[f"best.{index}"] for index in range(state.facts["best"])]
        self.optimizer.load_state_dict(state.tensors, len(self.record.losses))

    def _next_batch(self) -> Batch:
        epoch, batch = divmod(len(self.record.losses), self._steps_per_epoch)
        if batch == 0:
            self._start_epoch(epoch)
        size = self._request.training.batch_size
        picked = self._order[batch * size : (batch + 1) * size]
        rows, negatives = self._rows[picked], self._negatives[picked]
        dataset, device = self._dataset, self._encoder.device
        questions, query = np.unique(dataset.question[rows], return_inverse=True)
        positives = dataset.positive[rows]
        passages = np.unique(np.concatenate([positives, negatives[negatives >= 0]]))
        excluded, near_positives = self._source.excluded_in_batch(dataset.question[rows], passages)
        counts = self.record.negatives[-1]
        # Not in the checkpoints of earlier releases.
        counts[NEAR_IN_BATCH] = counts.get(NEAR_IN_BATCH, 0) + near_positives
        return Batch(
            questions=questions,
            passages=passages,
            query=torch.from_numpy(query).to(device),
            positive=torch.from_numpy(np.searchsorted(passages, positives)).to(device),
            excluded=torch.from_numpy(excluded).to(device),
            strength=torch.from_numpy(dataset.strength[rows]).to(device),
        )

    def _start_epoch(self, epoch: int) -> None:
        """Mine hard negatives where the embeddings are new, draw easy ones, and shuffle the examples."""
        if self._hard is None or self._mines_again:
            embeddings = self._start
            if self._mines_again and epoch > 0:
                embeddings = self._embeddings or self._embed(*self._encoder.all_texts())
            self._hard = self._source.hard(*embeddings)
            self._embeddings = None
        drawn = self._source.with_easy(self._hard, self._generator)
        self._negatives, self._order = drawn.passages, self._generator.permutation(len(self._rows))
        self.record.negatives.append(drawn.counts)
        self.record.mined_epochs += self._mines_again or (epoch == 0 and self._source.needs_mining)

    def _embed(self, questions: Indices, passages: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Their embeddings with the current weights; a checkpoint may be due between two blocks."""
        blocks = []
        for block in self._encoder.embed_blocks(questions, passages):
            blocks.append(block)
            self.checkpoint_if_due()
        embeddings = torch.cat(blocks)
        return embeddings[: len(questions)], embeddings[len(questions) :]


def cheap_to_embed_all(dataset: Dataset, examples: int, request: FineTuneRequested) -> bool:
    """Whether embedding every text costs a small share of an epoch of ``examples`` examples."""
    trained_texts = examples * (2 + request.dataset.hard_negatives + request.dataset.easy_negatives)
    embedded_texts = len(dataset.passages) + len(dataset.questions)
    return embedded_texts <= EMBEDDING_SHARE * 3 * trained_texts


def _progress(record: TrainingRecord, steps: int, request: FineTuneRequested) -> Progress:
    done, seconds = len(record.losses), record.seconds
    recent = record.losses[-20:]
    return Progress(
        step=done,
        steps=steps,
        loss=sum(recent) / len(recent),
        examples_per_second=done * request.training.batch_size / max(seconds, 1e-9),
        eta_seconds=(steps - done) * seconds / done,
        validation=tuple(round(value, 4) for value in record.validation),
    )


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """Inside, torch is seeded and, on the CPU, uses only algorithms that add up in the same order every time."""
    torch.manual_seed(seed)
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    # This mode would also fill all new memory, only to expose reads of uninitialized values.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
