"""The recipe of sentence-transformers' documentation: mine hard negatives, then train with in-batch negatives."""

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
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import mine_hard_negatives

from trainers.data.dataset import Dataset
from trainers.engine.trainable_encoder import TRAINING_TOKENS
from trainers.model.encoder import compute_dtype, default_device

HARD_NEGATIVES = 4
# The values of its documentation.
LEARNING_RATE = 2e-5
WARM_UP = 0.1
MARGIN = 0.05


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
    it; ``no_duplicates``: no text twice in a batch, which makes a better model, but drops some rows.
    """

    layers: int | None
    epochs: int = 3
    batch_size: int = 32
    autocast: bool = True
    no_duplicates: bool = True
    seed: int = 0


def mine_negatives(model: SentenceTransformer, dataset: Dataset, batch_size: int = 32) -> Any:
    """Rows of anchor, positive and ``HARD_NEGATIVES`` negatives; pairs with too few negatives are dropped."""
    pairs = datasets.Dataset.from_dict(
        {
            "anchor": [dataset.questions[index] for index in dataset.question],
            "positive": [dataset.passages[index] for index in dataset.positive],
        }
    )
    # Its progress bars cannot be disabled.
    with redirect_stderr(StringIO()):
        return mine_hard_negatives(
            pairs,
            model,
            corpus=list(dataset.passages[: dataset.documents]),
            num_negatives=HARD_NEGATIVES,
            relative_margin=MARGIN,
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
    loss = MultipleNegativesRankingLoss(model)
    batch_sizes: list[int] = []
    loss.register_forward_pre_hook(lambda _, inputs: batch_sizes.append(len(inputs[0][0]["input_ids"])))
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=str(folder / "checkpoints"),
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_size,
            learning_rate=LEARNING_RATE,
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


def load_model(folder: Path) -> SentenceTransformer:
    """The model of ``folder``, truncating texts to the same length as foldtune's training."""
    model = SentenceTransformer(str(folder), device=str(default_device()), trust_remote_code=False)
    model.max_seq_length = TRAINING_TOKENS
    return model
