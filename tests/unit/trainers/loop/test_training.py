import copy
import errno
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    BertConfig,
    CamembertConfig,
    Gemma3TextConfig,
    ModernBertConfig,
    MPNetConfig,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
    XLMRobertaConfig,
)

from foldtune.events import FineTuneRequested, Progress, now
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from tests.models import write_modules, write_transformer
from tests.unit.trainers.conftest import example, make_tables, use_compute_dtype
from trainers.data.dataset import Dataset, build_dataset
from trainers.data.negatives import nearest_below_margin
from trainers.engine import memory, trainable_encoder
from trainers.engine.embedder import Embedder
from trainers.engine.prefix_cache import PrefixCache
from trainers.engine.trainable_encoder import TrainableEncoder, affordable_tokens
from trainers.errors import KnobError, NotFiniteError
from trainers.evaluation.evaluation_set import embed
from trainers.loop.loss import contrastive_loss
from trainers.loop.optimizer import INITIAL_SCALE, LEARNING_RATE, UNVALIDATED_LEARNING_RATE, Optimizer
from trainers.loop.training import TrainingRecord, train
from trainers.loop.validation import Validation
from trainers.model.encoder import Encoder, compute_dtype
from trainers.model.split_model import freeze, split_model

SMALL: dict[str, Any] = {
    "vocab_size": 100,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
CONFIGS = [
    BertConfig(**SMALL),
    RobertaConfig(**SMALL),
    CamembertConfig(**SMALL),
    XLMRobertaConfig(**SMALL),
    MPNetConfig(**SMALL),
    ModernBertConfig(**SMALL | {"global_attn_every_n_layers": 2, "local_attention": 4, "reference_compile": False}),
    Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8),
    # Decoders choose a layer's mask by its index.
    Qwen3Config(
        **SMALL, num_key_value_heads=2, head_dim=8, use_sliding_window=True, sliding_window=4, max_window_layers=1
    ),
    Qwen2Config(**SMALL, num_key_value_heads=2),
    Gemma3TextConfig(
        **SMALL,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"],
        use_bidirectional_attention=True,
    ),
    # Of newer versions of transformers.
    *(CONFIG_MAPPING[name](**SMALL) for name in ("nomic_bert",) if name in CONFIG_MAPPING),
]


class Steps:
    """Records the progress."""

    def __init__(self) -> None:
        self.seen: list[Progress] = []

    def on_step(self, progress: Progress) -> None:
        self.seen.append(progress)


def request(layers: Any = 1, **weights: Any) -> FineTuneRequested:
    return FineTuneRequested(
        request_id="r",
        model="m",
        requested_at=now(),
        training=TrainingKnobs(batch_size=8, epochs=2, trainable_layers=layers),
        dataset=DatasetKnobs(hard_negatives=2, easy_negatives=1),
        weights=WeightKnobs(**weights),
    )


def trained(folder: Path, dataset: Dataset, tmp_path: Path, **weights: Any) -> tuple[Encoder, TrainingRecord, Steps]:
    encoder, steps = Encoder.load(folder, "cpu"), Steps()
    start = embed(encoder, dataset)
    rows = np.arange(len(dataset.question))
    trainable = TrainableEncoder(encoder, dataset, 1, tmp_path)
    record = train(trainable, dataset, rows, request(**weights), start=start, listener=steps)
    return encoder, record, steps


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_split_model_equals_the_whole(config: Any) -> None:
    torch.manual_seed(0)
    model = AutoModel.from_config(config).eval()
    freeze(model, 2)
    found = split_model(model, 2)
    assert found is not None
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11], [12, 13, 14, 0, 0, 0, 0]])
    mask = (ids > 0).long()
    whole = model(input_ids=ids, attention_mask=mask).last_hidden_state
    states = found.prefix(input_ids=ids, attention_mask=mask).last_hidden_state
    joined = found.trained(inputs_embeds=states, attention_mask=mask).last_hidden_state
    assert torch.allclose(whole[mask.bool()], joined[mask.bool()], atol=1e-5)
    assert not states.requires_grad
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert not any(".0." in name or "embeddings" in name for name in trainable)


def encoder_of(config: Any, tokenizer: Path, folder: Path, pooling: str = "mean", **encoding: Any) -> Encoder:
    write_transformer(folder, config, tokenizer)
    return Encoder.load(write_modules(folder, pooling, max_seq_length=512, **encoding), "cpu")


def embedded_alone(encoder: Encoder, questions: Sequence[str], passages: Sequence[str]) -> torch.Tensor:
    """Texts one by one by the library's whole model: no padding, no cache, no batch."""
    encoder.model.max_seq_length = encoder.max_tokens
    found = [encoder.model.encode_query(text, convert_to_tensor=True) for text in questions]
    found += [encoder.model.encode_document(text, convert_to_tensor=True) for text in passages]
    return torch.stack(found)


FEW_POSITIONS: dict[str, Any] = {**SMALL, "vocab_size": 30522, "pad_token_id": 1, "max_position_embeddings": 22}


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize(
    "pooling", ["mean", pytest.param("cls", marks=pytest.mark.slow), pytest.param("lasttoken", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize(
    "config",
    [RobertaConfig(**FEW_POSITIONS), CamembertConfig(**FEW_POSITIONS), BertConfig(**FEW_POSITIONS)],
    ids=lambda config: config.model_type,
)
def test_cache_and_padding_do_not_change_positions(
    config: Any, pooling: str, tiny_folder: Path, tmp_path: Path
) -> None:
    encoder, dataset = encoder_of(config, tiny_folder, tmp_path / "model", pooling), passages_of(*range(1, 25))
    # Positions of RoBERTa and its family begin behind the padding id, so the longest text has two tokens less.
    assert encoder.max_tokens == (22 if config.model_type == "bert" else 20)
    expected = embedded_alone(encoder, dataset.questions, dataset.passages)
    trainable = TrainableEncoder(encoder, dataset, 2, tmp_path)
    assert trainable.cached
    torch.testing.assert_close(torch.cat(trainable.embed_all()), expected, rtol=1e-4, atol=1e-5)
    longest = encoder.encode(["word " * 100])
    assert np.isfinite(longest).all()


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("cached", [True, False])
def test_prompts_are_part_of_the_training_texts(
    cached: bool, tiny_folder: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    prompts = {"query": "query: ", "document": "passage: "}
    config = BertConfig(**{**FEW_POSITIONS, "max_position_embeddings": 64})
    encoder = encoder_of(config, tiny_folder, tmp_path / "model", prompts=prompts)
    asked, read = encoder.tokenize(["x"], "query"), encoder.tokenize(["x"], "passage")
    assert encoder.tokenizer.decode(asked.ids) == "[CLS] query : x [SEP]"
    assert encoder.tokenizer.decode(read.ids) == "[CLS] passage : x [SEP]"
    trainable = TrainableEncoder(encoder, small_dataset, 2, tmp_path, cached=cached)
    questions, passages = np.array([3, 9]), np.array([1, 5, 17])
    embeddings = trainable.embed_batch(questions, passages).detach()
    asked_texts = [small_dataset.questions[row] for row in questions]
    wanted = embedded_alone(encoder, asked_texts, [small_dataset.passages[row] for row in passages])
    torch.testing.assert_close(embeddings, wanted, rtol=1e-4, atol=1e-5)


def test_a_cut_inside_the_prompt_is_refused(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    config = BertConfig(**{**FEW_POSITIONS, "max_position_embeddings": 64})
    prompts = {"query": "find what answers this question here: "}
    encoder = encoder_of(config, tiny_folder, tmp_path / "model", prompts=prompts)
    TrainableEncoder(encoder, small_dataset, 2, tmp_path, max_tokens=10)
    # The prompt has seven tokens and there are two special ones, so all questions would be the same.
    with pytest.raises(KnobError, match=r"training\.max_tokens: 9 tokens .* so 9 leave nothing of a text"):
        TrainableEncoder(encoder, small_dataset, 2, tmp_path, max_tokens=9)


def passages_of(*lengths: int) -> Dataset:
    """A dataset of passages with so many words each, of which all but the last are the same."""
    documents = {f"d{index}": "word " * (length - 1) + f"end{index}" for index, length in enumerate(lengths)}
    return build_dataset(*make_tables([example(f"what is {name}", name) for name in documents], documents))


def test_training_reads_as_much_as_costs_little_more(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable_encoder, "TRAINING_TOKENS", 8)
    encoder = Encoder.load(tiny_folder, "cpu")
    # All texts are short, some are long, and all are.
    assert affordable_tokens(encoder, passages_of(*[4] * 10)) == 64
    assert affordable_tokens(encoder, passages_of(40, 40, *[4] * 8)) == 16
    assert affordable_tokens(encoder, passages_of(*[40] * 10)) == 8
    for asked, used in ((None, 8), (20, 20), (10_000, 64)):
        assert TrainableEncoder(encoder, passages_of(40, 4), 1, tmp_path, max_tokens=asked).max_tokens == used


def test_passages_that_begin_alike_are_warned_of(tiny_folder: Path, tmp_path: Path) -> None:
    encoder, dataset = Encoder.load(tiny_folder, "cpu"), passages_of(30, 30, 30, 5)
    found = [TrainableEncoder(encoder, dataset, 1, tmp_path, max_tokens=size).text_warnings() for size in (16, 64)]
    (warning,) = set(found[0]) - set(found[1])
    assert "3 of 4 passages begin like another for 16 tokens" in warning
    assert "raise training.max_tokens" in warning
    # No knob makes the model read more.
    alike = passages_of(100, 100, 100, 5)
    *_, warning = TrainableEncoder(encoder, alike, 1, tmp_path, max_tokens=64).text_warnings()
    assert "3 of 4 passages begin like another for 64 tokens, which is all that base_model can read" in warning
    assert "max_tokens" not in warning


def test_an_unknown_layout_is_not_split() -> None:
    from transformers import AlbertConfig

    model = AutoModel.from_config(AlbertConfig(**SMALL, embedding_size=16, num_hidden_groups=1))
    freeze(model, 1)
    assert split_model(model, 1) is None


def test_more_trainable_layers_than_the_model_has_are_refused(tiny_folder: Path) -> None:
    with pytest.raises(KnobError, match=r"trainable_layers is 4, base_model has 3 layers"):
        freeze(Encoder.load(tiny_folder, "cpu").transformer, 4)


def gradients(encoder: Encoder, dataset: Dataset, tmp_path: Path, **options: Any) -> tuple[float, list[torch.Tensor]]:
    encoder.model.zero_grad()
    trainable = TrainableEncoder(encoder, dataset, 2, tmp_path, **options)
    assert trainable.cached == options.get("cached", True)
    questions, passages = np.array([3, 9]), np.array([1, 5, 17, 44])
    embeddings = trainable.embed_batch(questions, passages)
    loss = (embeddings[:2] @ embeddings[2:].T).pow(2).sum()
    trainable.backward(*torch.autograd.grad(loss, embeddings))
    return float(loss.detach()), [parameter.grad for parameter in trainable.parameters() if parameter.grad is not None]


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_cache_and_micro_batches_do_not_change_gradients(
    config: Any, tiny_folder: Path, small_dataset: Dataset, tmp_path: Path
) -> None:
    config = copy.deepcopy(config)
    config.vocab_size = 30522
    encoder = encoder_of(config, tiny_folder, tmp_path / "model")
    expected, wanted = gradients(encoder, small_dataset, tmp_path)
    assert wanted
    for options in ({"cached": False}, {"graph_budget": 0}, {"cached": False, "graph_budget": 0}):
        loss, found = gradients(encoder, small_dataset, tmp_path, **options)
        assert loss == pytest.approx(expected, rel=1e-5), options
        for one, other in zip(found, wanted, strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-5), options


@pytest.mark.parametrize("cached", [True, False])
def test_memory_for_graphs_changes_no_bit(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cached: bool
) -> None:
    use_compute_dtype(monkeypatch, torch.bfloat16)
    # Each text is a part.
    monkeypatch.setattr("trainers.model.encoder.BATCH_TOKENS", 1)
    built: list[int] = []
    forward = Embedder._forward

    def counted(embedder: Embedder, texts: Any) -> torch.Tensor:
        built.append(len(texts))
        return forward(embedder, texts)

    monkeypatch.setattr(Embedder, "_forward", counted)
    encoder, found, counts = Encoder.load(tiny_folder, "cpu"), [], []
    for budget in (None, 0, 150_000):
        built.clear()
        found.append(gradients(encoder, small_dataset, tmp_path, graph_budget=budget, cached=cached))
        counts.append(len(built))
    assert counts[:2] == [6, 12]
    assert 6 < counts[2] < 12
    for loss, others in found[1:]:
        assert loss == found[0][0]
        assert all(map(torch.equal, others, found[0][1]))


def test_training_all_layers_needs_no_cache(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    assert not TrainableEncoder(Encoder.load(tiny_folder, "cpu"), small_dataset, "all", tmp_path).cached


@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("bound", [4, 128])
def test_cached_embeddings_equal_those_of_the_model(
    bound: int, tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainable_encoder, "TRAINING_TOKENS", bound)
    encoder = Encoder.load(tiny_folder, "cpu")
    found = TrainableEncoder(encoder, small_dataset, 2, tmp_path).embed_full_length()
    for one, other in zip(found, embed(encoder, small_dataset), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cached", [True, False])
def test_two_byte_hidden_states_change_little(
    tiny_folder: Path,
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    cached: bool,
    dtype: torch.dtype,
) -> None:
    found = []
    for computed in (torch.float32, dtype):
        use_compute_dtype(monkeypatch, computed)
        trainable = TrainableEncoder(Encoder.load(tiny_folder, "cpu"), small_dataset, 2, tmp_path, cached=cached)
        found.append(torch.nn.functional.normalize(torch.cat(trainable.embed_all()), dim=1))
    likeness = (found[0] * found[1]).sum(dim=1)
    assert likeness.min() > 0.999
    assert not torch.equal(found[0], found[1])


@pytest.mark.slow
def test_float16_trains_like_float32(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for dtype in (torch.float32, torch.float16):
        use_compute_dtype(monkeypatch, dtype)
        encoder, record, _ = trained(tiny_folder, small_dataset, tmp_path)
        found.append((record.losses, torch.cat([one.flatten() for one in encoder.model.parameters()])))
    (expected, wanted), (losses, weights) = found
    assert losses != expected
    assert losses == pytest.approx(expected, abs=0.02)
    assert {one.dtype for one in encoder.model.parameters()} == {torch.float32}
    untrained = torch.cat([one.flatten() for one in Encoder.load(tiny_folder, "cpu").model.parameters()])
    assert (weights - wanted).norm() < 0.2 * (wanted - untrained).norm()


def optimizer_of(weight: torch.nn.Parameter, *, float16: bool) -> Optimizer:
    return Optimizer([weight], steps=100, peak=0.1, float16=float16)


def take_step(optimizer: Optimizer, weight: torch.nn.Parameter, gradient: float) -> bool:
    """A step with ``gradient`` after a backward pass in float16."""
    weight.grad = optimizer.scale(torch.full_like(weight, gradient)).half().float()
    return optimizer.step()


def test_a_step_with_gradients_beyond_float16_is_skipped() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(weight, float16=True)
    assert not take_step(optimizer, weight, 50.0)
    assert torch.equal(weight, torch.ones(2, 2))
    assert [take_step(optimizer, weight, 50.0) for _ in range(3)] == [False, True, True]
    assert (weight < 1).all()


@pytest.mark.parametrize("float16", [True, False])
def test_a_small_gradient_underflows_without_the_scale(float16: bool) -> None:
    # Of one dimension, so that it does not decay.
    weight = torch.nn.Parameter(torch.ones(2))
    take_step(optimizer_of(weight, float16=float16), weight, 1e-8)
    assert bool((weight < 1).all()) == float16


@pytest.mark.parametrize("float16", [True, False])
def test_persistently_non_finite_gradients_end_the_training(float16: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(weight, float16=float16)
    # The scale is halved down to 1.
    for _ in range(int(math.log2(INITIAL_SCALE)) if float16 else 0):
        take_step(optimizer, weight, torch.inf)
    with pytest.raises(NotFiniteError, match="gradient"):
        take_step(optimizer, weight, torch.inf)
    assert torch.equal(weight, torch.ones(2, 2))


def test_the_scale_of_float16_is_restored() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(weight, float16=True)
    for gradient in (50.0, 50.0, 50.0, 0.1):
        take_step(optimizer, weight, gradient)
    kept = {name: one.clone() for name, one in optimizer.state_dict().items()}
    other = torch.nn.Parameter(torch.zeros(2, 2))
    again = optimizer_of(other, float16=True)
    again.load_state_dict(kept, 4)
    for each, parameter in ((optimizer, weight), (again, other)):
        take_step(each, parameter, 0.3)
    assert torch.equal(weight, other)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in optimizer.state_dict().items())


def test_float16_resumes_from_another_dtype() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))
    optimizer = optimizer_of(weight, float16=False)
    take_step(optimizer, weight, 0.1)
    other = torch.nn.Parameter(torch.zeros(2, 2))
    again = optimizer_of(other, float16=True)
    again.load_state_dict(optimizer.state_dict(), 1)
    assert torch.equal(weight, other)
    take_step(again, other, 0.1)
    assert (other < weight).all()


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
        ({"avx2": True}, torch.float32),
    ],
)
def test_the_dtype_depends_on_the_processor(found: Any, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: found)
    assert compute_dtype(torch.device("cpu"), "bert") == expected


@pytest.mark.parametrize(
    ("bfloat16", "capability", "model_type", "expected"),
    [
        (True, (8, 0), "qwen3", torch.bfloat16),
        (False, (7, 5), "bert", torch.float16),
        (False, (7, 5), "qwen3", torch.float32),
        (False, (7, 5), "albert", torch.float32),
        (False, (6, 1), "bert", torch.float32),
    ],
)
def test_the_dtype_depends_on_the_gpu_and_the_model(
    bfloat16: bool,
    capability: tuple[int, int],
    model_type: str,
    expected: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: bfloat16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    assert compute_dtype(torch.device("cuda"), model_type) == expected


def test_a_cache_beyond_its_budget_spills_to_a_file(tiny_folder: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    tokens = encoder.tokenize(["one", "two words", ""])
    freeze(encoder.transformer, 1)
    split = split_model(encoder.transformer, 1)
    assert split is not None
    kept = PrefixCache(encoder, split.prefix, tokens, tmp_path, memory_budget=1 << 30)
    spilled = PrefixCache(encoder, split.prefix, tokens, tmp_path, memory_budget=0)
    assert (kept.spilled, spilled.spilled) == (False, True)
    assert (tmp_path / "prefix-states.bin").stat().st_size == spilled.size_bytes
    indices = np.array([2, 0, 1])
    assert torch.equal(kept.states(indices)[0], spilled.states(indices)[0])


@pytest.mark.usefixtures("full_precision")
def test_without_space_for_the_cache_training_runs_uncached(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    cached, with_cache, _ = trained(tiny_folder, small_dataset, tmp_path)
    monkeypatch.setattr("trainers.engine.prefix_cache.MEMORY_SHARE", 0)
    monkeypatch.setattr("os.posix_fallocate", full)
    plain, without, _ = trained(tiny_folder, small_dataset, tmp_path)
    assert (with_cache.cached, without.cached) == (True, False)
    assert without.losses == pytest.approx(with_cache.losses, rel=1e-4)
    for left, right in zip(cached.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=1e-4)


def test_a_container_may_have_less_memory_than_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = memory.total()
    limits = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(memory, "_LIMITS", limits)
    limits[1].write_text("1000000\n")
    assert (memory.total(), memory.available()) == (1_000_000, 1_000_000)
    limits[0].write_text("max\n")
    limits[1].unlink()
    assert memory.total() >= whole > 1_000_000


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    one, record, steps = trained(tiny_folder, small_dataset, tmp_path)
    other, again, _ = trained(tiny_folder, small_dataset, tmp_path)
    assert record.losses == again.losses
    for left, right in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(left, right)
    assert [progress.step for progress in steps.seen] == list(range(1, 11))
    assert {progress.steps for progress in steps.seen} == {10}
    # The mean of what there is of the last twenty steps.
    assert [progress.loss for progress in steps.seen] == pytest.approx(
        [sum(record.losses[:done]) / done for done in range(1, 11)]
    )
    seconds_left = [progress.eta_seconds * progress.examples_per_second for progress in steps.seen]
    assert seconds_left == pytest.approx([8 * (10 - done) for done in range(1, 11)])
    assert steps.seen[-1].examples_per_second == pytest.approx(80 / record.seconds, rel=0.05)
    assert record.mined_epochs == 2


def test_a_text_is_tokenized_once_and_embedded_once_a_step(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize, embed_texts = Encoder.tokenize, Embedder.embed
    tokenized: Counter[str] = Counter()
    batches: list[list[int]] = []

    def counted(encoder: Encoder, texts: Any, *how: Any) -> Any:
        tokenized.update(texts)
        return tokenize(encoder, texts, *how)

    def watched(embedder: Embedder, texts: Any, *, gradient: bool = False) -> torch.Tensor:
        if gradient:
            batches.append(texts.tolist())
        return embed_texts(embedder, texts, gradient=gradient)

    encoder = Encoder.load(tiny_folder, "cpu")
    monkeypatch.setattr(Encoder, "tokenize", counted)
    monkeypatch.setattr(Embedder, "embed", watched)
    trainable = TrainableEncoder(encoder, small_dataset, 1, tmp_path)
    start = trainable.embed_all()
    train(trainable, small_dataset, np.arange(40), request(), start=start, listener=Steps())
    # The empty text tells what the prompts take.
    assert tokenized.pop("") == len(("query", "passage"))
    assert set(tokenized) == {*small_dataset.questions, *small_dataset.passages}
    assert set(tokenized.values()) == {1}
    assert len(batches) == 10
    assert all(len(set(batch)) == len(batch) for batch in batches)
    # Eight questions have eight positives and three negatives each; these meet again.
    assert max(map(len, batches)) < 8 * 5


@pytest.mark.parametrize("cheap", [True, False])
def test_hard_negatives_are_mined_again_only_with_new_embeddings(
    cheap: bool,
    tiny_folder: Path,
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    searched = Mock(wraps=nearest_below_margin)
    monkeypatch.setattr("trainers.data.negatives.nearest_below_margin", searched)
    monkeypatch.setattr("trainers.loop.training.cheap_to_embed_all", lambda *_: cheap)
    _, record, _ = trained(tiny_folder, small_dataset, tmp_path)
    found = 2 if cheap else 1
    assert (searched.call_count, record.mined_epochs, len(record.negatives)) == (found, found, 2)


@pytest.mark.usefixtures("full_precision")
def test_every_text_is_cached_before_the_first_batch(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trainers.engine.trainable_encoder.TRAINING_TOKENS", 10)
    encoder = Encoder.load(tiny_folder, "cpu")
    trainable = TrainableEncoder(encoder, small_dataset, 1, tmp_path)
    queries, passages = trainable.embed_full_length()
    expected = embed(encoder, small_dataset)
    torch.testing.assert_close(queries, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(passages, expected[1], rtol=1e-4, atol=1e-5)
    frozen = Mock(side_effect=AssertionError)
    cache = trainable._embedder._cache
    assert cache is not None
    cache._prefix.forward = frozen
    _, cut = trainable.embed_all()
    frozen.assert_not_called()
    assert not torch.allclose(cut, passages, atol=1e-3)


@pytest.mark.parametrize(("validated", "rate"), [(True, LEARNING_RATE), (False, UNVALIDATED_LEARNING_RATE)])
def test_without_validation_the_learning_rate_is_lower(
    tiny_folder: Path,
    small_dataset: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    validated: bool,
    rate: float,
) -> None:
    optimizer = Mock(wraps=Optimizer)
    monkeypatch.setattr("trainers.loop.training.Optimizer", optimizer)
    trainable = TrainableEncoder(Encoder.load(tiny_folder, "cpu"), small_dataset, 1, tmp_path)
    validation = Validation(trainable, small_dataset, np.arange(5), sampled=False, seed=0) if validated else None
    start = trainable.embed_all()
    train(trainable, small_dataset, np.arange(8, 40), request(), start=start, listener=Steps(), validation=validation)
    assert optimizer.call_args.args[2] == rate


def test_only_the_last_layers_are_trained(tiny_folder: Path, small_dataset: Dataset, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in Encoder.load(tiny_folder, "cpu").transformer.state_dict().items()}
    encoder, _, _ = trained(tiny_folder, small_dataset, tmp_path)
    moved = {name for name, value in encoder.transformer.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(name.startswith("encoder.layer.2.") for name in moved)


def test_a_non_finite_embedding_ends_the_training(
    tiny_folder: Path, small_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(tiny_folder, "cpu")
    start = embed(encoder, small_dataset)
    trainable = TrainableEncoder(encoder, small_dataset, 1, tmp_path)
    monkeypatch.setattr(Encoder, "pool", lambda *given: given[1][:, 0].float() * torch.nan)
    with pytest.raises(NotFiniteError, match=r"an embedding computed in torch\."):
        train(trainable, small_dataset, np.arange(40), request(), start=start, listener=Steps())
    with pytest.raises(NotFiniteError, match="an embedding"):
        encoder.encode(["a text"])


def test_positives_of_a_question_are_not_its_in_batch_negatives(
    tables: Callable[..., Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [example("who", "a"), example("who", "b"), example("what", "b"), example("where", "c")]
    dataset = build_dataset(*tables(rows, {"a": "one", "b": "two", "c": "three", "d": "four"}))
    seen = Mock(wraps=contrastive_loss)
    monkeypatch.setattr("trainers.loop.training.contrastive_loss", seen)
    trainable = TrainableEncoder(Encoder.load(tiny_folder, "cpu"), dataset, 1, tmp_path)
    # In-batch negatives alone, so the passages of a batch are its positives.
    asked = request().model_copy(update={"dataset": DatasetKnobs(hard_negatives=0, easy_negatives=0)})
    record = train(trainable, dataset, np.arange(4), asked, start=trainable.embed_all(), listener=Steps())
    assert len(record.losses) == 2
    assert all(0 < loss < 20 for loss in record.losses)
    _, _, positive, excluded, _ = seen.call_args.args
    # Both rows of "who" spare both of its passages, each other row its own alone.
    assert excluded[torch.arange(4), positive].all()
    spared = Counter(tuple(np.flatnonzero(row)) for row in excluded.numpy())
    assert spared == {(0, 1): 2, (1,): 1, (2,): 1}


def test_a_near_copy_of_a_positive_is_not_its_in_batch_negative(
    tables: Callable[..., Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = {"a": "the old red harbour ferry", "a2": "the new red harbour ferry", "b": "a tower of stone"}
    rows = [example("who", "a"), example("what", "a2"), example("where", "b")]
    dataset = build_dataset(*tables(rows, documents))
    seen = Mock(wraps=contrastive_loss)
    monkeypatch.setattr("trainers.loop.training.contrastive_loss", seen)
    trainable = TrainableEncoder(Encoder.load(tiny_folder, "cpu"), dataset, 1, tmp_path)
    asked = request().model_copy(update={"dataset": DatasetKnobs(hard_negatives=0, easy_negatives=0)})
    record = train(trainable, dataset, np.arange(3), asked, start=trainable.embed_all(), listener=Steps())
    spared = Counter(tuple(np.flatnonzero(row)) for row in seen.call_args.args[3].numpy())
    assert spared == {(0, 1): 2, (2,): 1}
    assert [counts["in_batch_near_positive_by_words"] for counts in record.negatives] == [2] * len(record.negatives)
