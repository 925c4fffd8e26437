"""Embeddings with gradients: the trained layers on top of what the frozen ones left, or the whole model."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch

from trainers.dataset import Dataset
from trainers.encoder import Encoder
from trainers.layouts import freeze, halves
from trainers.prefix_cache import PrefixCache
from trainers.tokens import Tokens, by_length

Indices = npt.NDArray[np.int64]
LossOf = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, float]]

# Texts are cut for training: a step's time and the cache's size go with the tokens, and what a passage is about is
# mostly said at its beginning. Evaluation, and whoever serves the model, read up to the model's own bound.
TRAINING_TOKENS = 128
# What the backward pass keeps of one token in one layer, in units of the hidden size: the inputs of its products, its
# norms and its activation, the wide ones counted four times.
_KEPT_PER_LAYER = 24
# A step whose graph would take more than this share of the memory is computed twice, in parts (see ``backward``). Of
# all memory, not of what is free at the moment: the two ways differ in their last bits, and a repeated run must not.
_GRAPH_SHARE = 0.2


class TrainedLayers:
    """An encoder of which only the last layers train; it embeds the dataset's texts by their index.

    Questions and passages are tokenized once. Where the frozen part is known, it runs once for each text.
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
        self._tokens = self._tokenize(TRAINING_TOKENS)
        whole = self._tokenize(encoder.max_tokens)
        self._cut = np.flatnonzero(whole.lengths > self._tokens.lengths)
        freeze(encoder.model, trainable_layers)
        self._halves = halves(encoder.model, trainable_layers) if cached else None
        self._cache = PrefixCache(encoder, self._halves.prefix, self._tokens, spill_folder) if self._halves else None
        layers = encoder.model.config.num_hidden_layers if isinstance(trainable_layers, str) else trainable_layers
        self._token_bytes = layers * _KEPT_PER_LAYER * encoder.dimension * 4
        self._graph_budget = graph_budget

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._encoder.device

    @property
    def cached(self) -> bool:
        """Whether the frozen layers run only once for each text."""
        return self._cache is not None

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains."""
        return [parameter for parameter in self._encoder.model.parameters() if parameter.requires_grad]

    def weights(self) -> list[torch.Tensor]:
        """A copy of what trains, in main memory."""
        return [parameter.detach().to("cpu", copy=True) for parameter in self.parameters()]

    def put_weights(self, weights: Sequence[torch.Tensor]) -> None:
        """Go on with ``weights``, in the order of ``weights()``."""
        for parameter, values in zip(self.parameters(), weights, strict=True):
            parameter.data.copy_(values)

    def backward(self, questions: Indices, passages: Indices, loss_of: LossOf) -> tuple[float, float]:
        """Add the gradients of ``loss_of(question embeddings, passage embeddings)`` to the parameters.

        Where the graph of the whole batch does not fit, it is built part by part (gradient caching, Gao et al. 2021,
        arXiv 2101.06983): embed without a graph, take the loss's gradient at the embeddings, then embed each part again
        with a graph and go backward from there. Without dropout both ways are equal.

        Returns:
            The loss, and what ``loss_of`` returned beside it.
        """
        texts = np.concatenate([questions, passages + self._questions])
        parts = list(by_length(self._tokens.lengths[texts], self._encoder.batch_tokens))
        order = torch.from_numpy(np.argsort(np.concatenate(parts))).to(self.device)
        fits = int(self._tokens.lengths[texts].sum()) * self._token_bytes <= self._budget()
        with torch.set_grad_enabled(fits):
            embeddings = torch.cat([self._embed(texts[part]) for part in parts])
        if not fits:
            embeddings.requires_grad_(True)
        ordered = embeddings.index_select(0, order)
        loss, extra = loss_of(ordered[: len(questions)], ordered[len(questions) :])
        torch.autograd.backward(loss)
        if not fits and embeddings.grad is not None:
            gradients = torch.split_with_sizes(embeddings.grad, [len(part) for part in parts])
            for part, gradient in zip(parts, gradients, strict=True):
                torch.autograd.backward(self._embed(texts[part]), gradient)
        return float(loss.detach()), extra

    def embed_all(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of all questions ``[q, d]`` and of all passages ``[p, d]`` by the model as it stands."""
        return self.embed(np.arange(self._questions), np.arange(len(self._dataset.passages)))

    def embed(self, questions: Indices, passages: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Like ``embed_all``, of these questions and passages only."""
        texts = np.concatenate([questions, passages + self._questions])
        found = torch.empty((len(texts), self._encoder.dimension), device=self.device)
        with torch.no_grad():
            for part in by_length(self._tokens.lengths[texts], self._encoder.batch_tokens):
                found[torch.from_numpy(part)] = self._embed(texts[part])
        return found[: len(questions)], found[len(questions) :]

    def embed_uncut(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Like ``embed_all``, but of texts as long as the model reads them, as whoever serves the model sees them.

        Most texts are not cut for training at all, and for those the frozen layers need not run again.
        """
        found = torch.cat(self.embed_all())
        questions = self._cut[self._cut < self._questions]
        passages = self._cut[self._cut >= self._questions]
        asked = self._encoder.encode([self._dataset.questions[text] for text in questions], "query")
        read = self._encoder.encode([self._dataset.passages[text - self._questions] for text in passages], "passage")
        uncut = torch.from_numpy(np.concatenate([asked, read])).to(self.device)
        found[torch.from_numpy(self._cut).to(self.device)] = uncut
        return found[: self._questions], found[self._questions :]

    def _tokenize(self, max_tokens: int) -> Tokens:
        questions = self._encoder.tokenize(self._dataset.questions, "query", max_tokens)
        passages = self._encoder.tokenize(self._dataset.passages, "passage", max_tokens)
        return _joined(questions, passages)

    def _embed(self, texts: Indices) -> torch.Tensor:
        # A context of its own: autocast keeps the weights it has converted until it ends, without their gradients if
        # they were first met where no gradient was wanted.
        with self._encoder.autocast():
            if self._cache is not None and self._halves is not None:
                states, mask = self._cache.states(texts)
                states = self._halves.trained(inputs_embeds=states, attention_mask=mask).last_hidden_state
            else:
                ids, mask = self._tokens.padded(texts, self.device)
                states = self._encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return self._encoder.pool(states, mask)

    def _budget(self) -> int:
        if self._graph_budget is not None:
            return self._graph_budget
        if self.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self.device)[1] * _GRAPH_SHARE)
        return int(psutil.virtual_memory().total * _GRAPH_SHARE)


def _joined(first: Tokens, second: Tokens) -> Tokens:
    starts = np.concatenate([first.starts, second.starts[1:] + first.starts[-1]])
    return Tokens(np.concatenate([first.ids, second.ids]), starts)
