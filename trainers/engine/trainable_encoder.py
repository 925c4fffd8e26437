"""Embeddings with gradients: the trained layers on top of what the frozen ones left, or the whole model."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from trainers.data.dataset import Dataset
from trainers.engine import ranks
from trainers.engine.embedder import Embedder
from trainers.model.encoder import Encoder
from trainers.model.tokens import Tokens

Indices = npt.NDArray[np.int64]
LossOf = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, float]]

# Texts are cut for training: a step's time and the cache's size go with the tokens, and what a passage is about is
# mostly said at its beginning. Evaluation, and whoever serves the model, read up to the model's own bound.
TRAINING_TOKENS = 128
# A process that is asked to end has two minutes: so many texts a rank are embedded in half of one on two cores.
_BLOCK = 2_048


class TrainableEncoder:
    """An encoder of which the last layers or all train; it embeds the dataset's texts by their index.

    Questions and passages are tokenized once, those that are longer than what is trained on once more as a whole.
    """

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        trainable_layers: int | str,
        spill_folder: Path,
        *,
        cached: bool = True,
        graph_budget: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._dataset = dataset
        self._questions = len(dataset.questions)
        self._pause: Callable[[], None] | None = None
        self._tokens = self._tokenize(np.arange(self._questions + len(dataset.passages)), TRAINING_TOKENS)
        full = self._tokens.lengths == TRAINING_TOKENS
        self._long = np.flatnonzero(full & (encoder.max_tokens > TRAINING_TOKENS))
        self._whole = self._tokenize(self._long, encoder.max_tokens)
        self._embedder = Embedder(
            encoder, self._tokens, trainable_layers, spill_folder, cached=cached, graph_budget=graph_budget
        )
        if self.device.type == "cpu":
            # In bfloat16 a state depends on the other texts of its batch. ``embed_full_length`` computes all others in
            # one order, whether a training starts or resumes; these would be computed in the order of the batches.
            self._embedder.fill(self._long)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._encoder.device

    @property
    def cached(self) -> bool:
        """Whether the frozen layers run only once for each text."""
        return self._embedder.cached

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains."""
        return self._embedder.parameters()

    def weights(self) -> list[torch.Tensor]:
        """A copy of what trains, in main memory."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters()]

    def put_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Go on with ``weights``, in the order of ``weights()``."""
        for parameter, values in zip(self.parameters(), weights, strict=True):
            parameter.data.copy_(values)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The format that products are computed in."""
        return self._encoder.compute_dtype

    def backward(
        self, questions: Indices, passages: Indices, loss_of: LossOf, scaled: Callable[[torch.Tensor], torch.Tensor]
    ) -> tuple[float, float]:
        """Add the gradients of ``loss_of(question embeddings, passage embeddings)`` to the parameters.

        The loss's gradient is taken at the embeddings, and goes backward through the model from there, as ``scaled``
        makes it.

        Returns:
            The loss, and what ``loss_of`` returned beside it.
        """
        texts = np.concatenate([questions, passages + self._questions])
        embeddings = self._embedder.embed(texts, gradient=True).requires_grad_()
        loss, extra = loss_of(embeddings[: len(questions)], embeddings[len(questions) :])
        (gradient,) = torch.autograd.grad(loss, embeddings)
        self._embedder.backward(scaled(gradient))
        return float(loss.detach()), extra

    def embed_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all questions ``[q, d]`` and of all passages ``[p, d]`` by the model as it stands."""
        return self.embed(np.arange(self._questions), np.arange(len(self._dataset.passages)))

    def embed(self, questions: Indices, passages: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Like ``embed_all``, of these questions and passages only."""
        texts = np.concatenate([questions, passages + self._questions])
        found = torch.empty((len(texts), self._encoder.dimension), device=self.device)
        block = _BLOCK * ranks.size() if self._pause else max(1, len(texts))
        for first in range(0, len(texts), block):
            if self._pause:
                self._pause()
            found[first : first + block] = self._embedder.embed(texts[first : first + block])
        return found[: len(questions)], found[len(questions) :]

    @contextmanager
    def pausing(self, pause: Callable[[], None]) -> Iterator[None]:
        """Inside, an embedding calls ``pause`` from time to time, which may end it by raising."""
        self._pause = pause
        try:
            yield
        finally:
            self._pause = None

    def text_warnings(self) -> dict[str, int]:
        """How many texts the model cannot read as they are meant, by what is odd about them."""
        tokenizer, bound = self._encoder.tokenizer, self._encoder.max_tokens
        # Some tokenizers know all words, and name an end or a padding as their unknown one.
        unknown = {tokenizer.unk_token_id} - {tokenizer.eos_token_id, tokenizer.pad_token_id, None}
        total = np.concatenate([[0], np.cumsum(np.isin(self._tokens.ids, [*unknown]))])
        missed = np.diff(total[self._tokens.starts])
        # Special tokens and the prompt are known to it in any case.
        around = [self._encoder.tokenize([""], kind).lengths[0] for kind in ("query", "passage")]
        own = self._tokens.lengths - np.repeat(around, [self._questions, len(self._dataset.passages)])
        texts = self._dataset.questions + self._dataset.passages
        # What is cut for training only is there twice, and reaches the bound but once.
        lengths = np.concatenate([self._tokens.lengths, self._whole.lengths])
        found = {
            "without any letter or digit": sum(not any(map(str.isalnum, text)) for text in texts),
            f"as long as the {bound} tokens that base_model reads, or longer": int((lengths >= bound).sum()),
            "mostly of words that base_model does not know": int((2 * missed > own).sum()),
        }
        return {what: count for what, count in found.items() if count}

    def embed_full_length(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Like ``embed_all``, but of texts as long as the model reads them, as whoever serves the model sees them.

        Most texts are not cut for training, and for those the frozen layers need not run again.
        """
        short = np.setdiff1d(np.arange(len(self._tokens)), self._long)
        cached = self._embedder.embed(short)
        found = torch.empty((len(self._tokens), cached.shape[1]), device=cached.device)
        found[torch.from_numpy(short).to(self.device)] = cached
        whole = torch.from_numpy(self._encoder.encode_tokens(self._whole)).to(self.device)
        found[torch.from_numpy(self._long).to(self.device)] = whole
        return found[: self._questions], found[self._questions :]

    def _tokenize(self, texts: Indices, max_tokens: int) -> Tokens:
        """``texts`` in ascending order."""
        questions = [self._dataset.questions[text] for text in texts if text < self._questions]
        passages = [self._dataset.passages[text - self._questions] for text in texts if text >= self._questions]
        return _joined(
            self._encoder.tokenize(questions, "query", max_tokens),
            self._encoder.tokenize(passages, "passage", max_tokens),
        )


def _joined(first: Tokens, second: Tokens) -> Tokens:
    starts = np.concatenate([first.starts, second.starts[1:] + first.starts[-1]])
    return Tokens(np.concatenate([first.ids, second.ids]), starts)
