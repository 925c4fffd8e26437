"""The recipes of sentence-transformers' documentation: in-batch negatives, with or without mined hard negatives."""

import time
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import datasets
import torch
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.util import mine_hard_negatives

from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TRAINING_TOKENS
from trainers.model.encoder import compute_dtype, default_device
from trainers.model.tokens import Indices

HARD_NEGATIVES = 4
# The values of its documentation.
LEARNING_RATE = 2e-5
WARM_UP = 0.1
MARGIN = 0.05
# What the cached loss embeds at a time.
MINI_BATCH = 32


@dataclass(frozen=True)
class TrainingSummary:
    """Measurements of a training: ``rows`` over all epochs, ``parameters`` that are trainable."""

    seconds: float
    steps: int
    rows: int
    parameters: int


@dataclass(frozen=True)
class TrainingConfig:
    """``layers``: trainable last layers, None for all; ``autocast``: bfloat16 or float16 where the hardware supports
    it; ``no_duplicates``: no text twice in a batch, which makes a better model, but drops some rows; ``cached``: the
    loss that embeds a batch in parts, so that it may be larger.
    """

    layers: int | None
    learning_rate: float = LEARNING_RATE
    epochs: int = 3
    batch_size: int = 32
    cached: bool = False
    autocast: bool = True
    no_duplicates: bool = True
    seed: int = 0


def pairs(dataset: Dataset, examples: Indices | None = None) -> Any:
    """Rows of anchor and positive; ``examples`` are those of the dataset to use, all by default."""
    selected = slice(None) if examples is None else examples
    return datasets.Dataset.from_dict(
        {
            "anchor": [dataset.questions[index] for index in dataset.question[selected]],
            "positive": [dataset.passages[index] for index in dataset.positive[selected]],
        }
    )


def mine_negatives(
    model: SentenceTransformer,
    dataset: Dataset,
    *,
    negatives: int = HARD_NEGATIVES,
    margin: float | None = MARGIN,
    rows: Any = None,
    batch_size: int = 32,
) -> Any:
    """``rows`` (default: all pairs) with ``negatives`` more columns; a pair with fewer of them is dropped.

    A negative's score is at most ``1 - margin`` of the positive's; None takes any.
    """
    # Its progress bars cannot be disabled.
    with redirect_stderr(StringIO()):
        return mine_hard_negatives(
            pairs(dataset) if rows is None else rows,
            model,
            corpus=list(dataset.passages[: dataset.documents]),
            num_negatives=negatives,
            relative_margin=margin,
            range_max=100,
            sampling_strategy="top",
            output_format="n-tuple",
            batch_size=batch_size,
            verbose=False,
        )


def train(base_folder: Path, rows: Any, config: TrainingConfig, folder: Path) -> TrainingSummary:
    """Fine-tune the model of ``base_folder`` on ``rows`` and save it in ``folder``."""
    began = time.perf_counter()
    model = load_model(base_folder)
    transformer: Any = model[0]
    # The pooler's output is not used: embeddings are means of the last hidden states.
    transformer.auto_model.pooler.requires_grad_(False)
    if config.layers is not None:
        transformer.auto_model.requires_grad_(False)
        transformer.auto_model.encoder.layer[-config.layers :].requires_grad_(True)
    device = default_device()
    dtype = compute_dtype(device, "bert") if config.autocast else torch.float32
    loss: Any = (
        CachedMultipleNegativesRankingLoss(model, mini_batch_size=MINI_BATCH)
        if config.cached
        else MultipleNegativesRankingLoss(model)
    )
    batch_sizes: list[int] = []
    loss.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0][0]["input_ids"])))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "checkpoints"),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=config.learning_rate,
            warmup_steps=WARM_UP,
            batch_sampler=BatchSamplers.NO_DUPLICATES if config.no_duplicates else BatchSamplers.BATCH_SAMPLER,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=device.type == "cpu",
            seed=config.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=rows,
        loss=loss,
    )
    trainer.train()
    model.save_pretrained(str(folder))
    seconds = time.perf_counter() - began
    parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return TrainingSummary(seconds, trainer.state.global_step, sum(batch_sizes), parameters)


def load_model(folder: Path, max_tokens: int = TRAINING_TOKENS) -> SentenceTransformer:
    """The model of ``folder``, which truncates texts to ``max_tokens``: by default as foldtune's training does."""
    model = SentenceTransformer(str(folder), device=str(default_device()), trust_remote_code=False)
    model.max_seq_length = max_tokens
    return model
