"""The encoder in training: embeds the dataset's texts by index, and takes the loss's gradient back to the weights."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from trainers.data.dataset import Dataset
from trainers.engine import ranks
from trainers.engine.embedder import Embedder
from trainers.errors import KnobError
from trainers.model.encoder import Encoder, TextKind
from trainers.model.tokens import Indices, Tokens

# Texts are truncated for training: a step's time and the cache's size grow with the tokens, and a passage's subject
# mostly shows at its beginning. Evaluation and serving read up to the model's own maximum.
TRAINING_TOKENS = 128
# Training reads more tokens where that costs at most so many times as much: where few texts are longer.
_TOKEN_BUDGET = 1.5
_SAMPLED_TEXTS = 2_000
# Above this share of passages that are equal as far as training reads them, there is little to learn from them.
_MAX_EQUAL_SHARE = 0.5
# Texts a rank embeds between two checks for SIGTERM: 30 s on two cores, of the two minutes until SIGKILL.
_BLOCK_TEXTS = 2_048


def affordable_tokens(encoder: Encoder, dataset: Dataset) -> int:
    """Tokens to which texts are truncated for training if nobody says: all that the model reads, if that costs little
    more time and memory than ``TRAINING_TOKENS``, else what does, judged by a sample of the passages.
    """
    sample = np.unique(np.linspace(0, len(dataset.passages) - 1, _SAMPLED_TEXTS, dtype=np.int64))
    lengths = encoder.tokenize([dataset.passages[index] for index in sample]).lengths
    budget = _TOKEN_BUDGET * np.minimum(lengths, TRAINING_TOKENS).sum()
    bound = min(TRAINING_TOKENS, encoder.max_tokens)
    while bound < encoder.max_tokens:
        longer = min(2 * bound, encoder.max_tokens)
        if np.minimum(lengths, longer).sum() > budget:
            break
        bound = longer
    return bound


class TrainableEncoder:
    """An encoder of which the last layers or all train; it embeds the dataset's questions and passages by their index.

    All texts are tokenized once, truncated to ``max_tokens``; those that reach it once more at full length.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        trainable_layers: int | str,
        spill_folder: Path,
        *,
        max_tokens: int | None = None,
        cached: bool = True,
        graph_budget: int | None = None,
    ) -> None:
        self.max_tokens = min(max_tokens or TRAINING_TOKENS, encoder.max_tokens)
        kinds: tuple[TextKind, ...] = ("query", "passage")
        self._added = {kind: encoder.added_tokens(kind) for kind in kinds}
        if (most := max(self._added.values())) >= self.max_tokens:
            # Cut there, all texts of the kind would be one, and teach nothing.
            raise KnobError(
                f"training.max_tokens: {most} tokens are base_model's prompt and special ones, so {self.max_tokens} "
                "leave nothing of a text"
            )
        self._encoder = encoder
        self._dataset = dataset
        self._questions = len(dataset.questions)
        self._tokens = self._tokenize(np.arange(self._questions + len(dataset.passages)), self.max_tokens)
        full = self._tokens.lengths == self.max_tokens
        self._long = np.flatnonzero(full & (encoder.max_tokens > self.max_tokens))
        self._long_tokens = self._tokenize(self._long, encoder.max_tokens)
        self._embedder = Embedder(
            encoder, self._tokens, trainable_layers, spill_folder, cached=cached, graph_budget=graph_budget
        )
        if self.device.type == "cpu":
            # In bfloat16 a text's states depend on its batch. ``embed_full_length`` caches all other texts in the same
            # batches whether a training starts or resumes; without this, the long ones would be cached in batches that
            # depend on where it resumes.
            self._embedder.fill(self._long)

    @property
    def device(self) -> torch.device:
        """The model's device."""
        return self._encoder.device

    @property
    def cached(self) -> bool:
        """Whether the frozen layers run only once for each text."""
        return self._embedder.cached

    @property
    def cosine(self) -> bool:
        """Whether the model's embeddings are compared by their cosine, otherwise by their inner product."""
        return self._encoder.cosine

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products."""
        return self._encoder.compute_dtype

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters."""
        return self._embedder.parameters()

    def weights(self) -> list[torch.Tensor]:
        """A copy of the trainable parameters in main memory."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters()]

    def load_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Overwrite the trainable parameters, in the order of ``weights()``."""
        for parameter, values in zip(self.parameters(), weights, strict=True):
            parameter.data.copy_(values)

    def embed_batch(self, questions: Indices, passages: Indices) -> torch.Tensor:
        """Forward pass of a training step: embeddings ``[q + p, d]`` of the questions and then of the passages.

        They are a leaf of the autograd graph: take the loss's gradient at them, and pass it to ``backward``.

        Raises:
            NotFiniteError: an embedding is not finite.
        """
        return self._embedder.embed(self._texts(questions, passages), gradient=True).requires_grad_()

    def backward(self, gradient: torch.Tensor) -> None:
        """Backward pass: accumulate the parameters' gradients, given the ``gradient`` at the last ``embed_batch``."""
        self._embedder.backward(gradient)

    def embed_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all questions ``[q, d]`` and of all passages ``[p, d]`` with the current weights, detached."""
        return self.embed(*self.all_texts())

    def embed(self, questions: Indices, passages: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """``embed_all`` for some of the questions and passages."""
        embeddings = self._embedder.embed(self._texts(questions, passages))
        return embeddings[: len(questions)], embeddings[len(questions) :]

    def embed_blocks(self, questions: Indices, passages: Indices) -> Iterator[torch.Tensor]:
        """The embeddings ``[q + p, d]`` block by block, each computed when it is asked for.

        The caller may stop, checkpoint or raise between two blocks, but not change the weights.
        """
        texts, size = self._texts(questions, passages), _BLOCK_TEXTS * ranks.world_size()
        for start in range(0, len(texts), size):
            yield self._embedder.embed(texts[start : start + size])

    def embed_full_length(self) -> tuple[torch.Tensor, torch.Tensor]:
        """``embed_all`` with texts up to the model's own maximum, as in serving.

        Most texts are shorter than ``max_tokens``, and for those the frozen layers need not run again.
        """
        short = np.setdiff1d(np.arange(len(self._tokens)), self._long)
        short_embeddings = self._embedder.embed(short)
        embeddings = torch.empty((len(self._tokens), self._encoder.dimension), device=self.device)
        embeddings[torch.from_numpy(short).to(self.device)] = short_embeddings
        long_embeddings = torch.from_numpy(self._encoder.encode_tokens(self._long_tokens)).to(self.device)
        embeddings[torch.from_numpy(self._long).to(self.device)] = long_embeddings
        return embeddings[: self._questions], embeddings[self._questions :]

    def all_texts(self) -> tuple[Indices, Indices]:
        """The indices of all questions and of all passages."""
        return np.arange(self._questions), np.arange(len(self._dataset.passages))

    def text_warnings(self) -> list[str]:
        """Warnings about texts that the model cannot represent well, with their numbers."""
        tokenizer, max_tokens = self._encoder.tokenizer, self._encoder.max_tokens
        # Tokenizers without unknown words may use their end-of-sequence or padding token as the unknown one.
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.pad_token_id, None}
        cumulative = np.concatenate([[0], np.cumsum(np.isin(self._tokens.ids, [*unknown]))])
        unknown_tokens = np.diff(cumulative[self._tokens.starts])
        # Special tokens and the prompt are always known.
        added = np.repeat([*self._added.values()], [self._questions, len(self._dataset.passages)])
        own_tokens = self._tokens.lengths - added
        texts = self._dataset.questions + self._dataset.passages
        # A long text is in both arrays, but reaches the maximum only in the second.
        lengths = np.concatenate([self._tokens.lengths, self._long_tokens.lengths])
        counts = {
            "contain no letter or digit": sum(not any(map(str.isalnum, text)) for text in texts),
            f"reach or exceed base_model's maximum of {max_tokens} tokens": int((lengths >= max_tokens).sum()),
            "are mostly words unknown to base_model": int((2 * unknown_tokens > own_tokens).sum()),
        }
        warnings = [f"{count} of {len(texts)} texts {problem}" for problem, count in counts.items() if count]
        by, remedy = "training reads", ", or raise training.max_tokens"
        if self.max_tokens == max_tokens:
            by, remedy = "base_model can read", ""
        if (equal := self._equal_passages()) > _MAX_EQUAL_SHARE * len(self._dataset.passages):
            warnings.append(
                f"{equal} of {len(self._dataset.passages)} passages begin like another for {self.max_tokens} tokens, "
                f"which is all that {by} of them: leave a common header out{remedy}"
            )
        return warnings

    def _equal_passages(self) -> int:
        """Truncated passages whose tokens are those of another."""
        passages = np.arange(self._questions, len(self._tokens))
        truncated = passages[self._tokens.lengths[passages] == self.max_tokens]
        starts, ids = self._tokens.starts, self._tokens.ids
        seen = Counter(ids[starts[text] : starts[text + 1]].tobytes() for text in truncated)
        return sum(count for count in seen.values() if count > 1)

    def _texts(self, questions: Indices, passages: Indices) -> Indices:
        """Indices in ``_tokens``, where passages come after all questions."""
        return np.concatenate([questions, passages + self._questions])

    def _tokenize(self, texts: Indices, max_tokens: int) -> Tokens:
        """Tokens of ``texts``, which are in ascending order."""
        questions = [self._dataset.questions[text] for text in texts if text < self._questions]
        passages = [self._dataset.passages[text - self._questions] for text in texts if text >= self._questions]
        return Tokens.concatenate(
            self._encoder.tokenize(questions, "query", max_tokens),
            self._encoder.tokenize(passages, "passage", max_tokens),
        )
