"""The model forward and backward for texts by their index, each rank for its share of them."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel

from trainers.engine import memory, ranks
from trainers.engine.prefix_cache import PrefixCache
from trainers.model.encoder import Encoder, default_device
from trainers.model.split_model import freeze, split_model
from trainers.model.tokens import Tokens, length_sorted_batches

Indices = npt.NDArray[np.int64]

# What the backward pass keeps of one token in one layer, in units of the hidden size: the inputs of its products, its
# norms and its activation, the wide ones counted four times.
_KEPT_PER_LAYER = 24
# A step whose graph would take more than this share of the memory is computed twice, in parts (see ``backward``). Of
# all memory, not of what is free at the moment: the two ways differ in their last bits, and a repeated run must not.
_GRAPH_SHARE = 0.2


class Embedder:
    """An encoder of which the last layers or all train, and the tokens of all texts.

    Where the frozen part is known, it runs once for each text. With several ranks, ``embed`` and ``backward`` called on
    rank 0 run on all of them, and the weights are rank 0's. A text always belongs to the same rank, by its index, so
    that its frozen part runs on that one alone. No rank needs more than tokens and the gradient at its embeddings: what
    is made of all embeddings together, the loss, is computed once.
    """

    def __init__(
        self,
        encoder: Encoder,
        tokens: Tokens,
        trainable_layers: int | str,
        spill_folder: Path,
        *,
        cached: bool = True,
        graph_budget: int | None = None,
    ) -> None:
        # First of all, so that rank 0 alone refuses what is impossible, and has the time to say so.
        freeze(encoder.model, trainable_layers)
        ranks.broadcast_call(
            encoder.model.config, encoder.encoding_config, tokens, trainable_layers, cached, graph_budget
        )
        ranks.copy_from_first(encoder.model.state_dict().values())
        self._encoder, self._tokens = encoder, tokens
        self._halves = split_model(encoder.model, trainable_layers) if cached else None
        self._cache = (
            PrefixCache.that_fits(encoder, self._halves.prefix, tokens, spill_folder) if self._halves else None
        )
        layers = encoder.model.config.num_hidden_layers if isinstance(trainable_layers, str) else trainable_layers
        # On a CPU, attention in its parts keeps about what bfloat16 saves.
        width = encoder.compute_dtype.itemsize if encoder.device.type == "cuda" else 4
        self._token_bytes = layers * _KEPT_PER_LAYER * encoder.dimension * width
        self._graph_budget = graph_budget
        # The texts of the last ``embed``, in parts: their places in it, their indices, and their graph if it was kept.
        self._parts: list[tuple[torch.Tensor, Indices, torch.Tensor | None]] = []

    @property
    def cached(self) -> bool:
        """Whether the frozen layers run only once for each text."""
        return self._cache is not None

    def parameters(self) -> list[torch.nn.Parameter]:
        """What trains."""
        return [parameter for parameter in self._encoder.model.parameters() if parameter.requires_grad]

    def fill(self, texts: Indices) -> None:
        """Have the frozen part run for ``texts``, where its states are kept."""
        ranks.broadcast_call("fill", texts)
        if self._cache is not None:
            self._cache.fill(texts[texts % ranks.size() == ranks.rank()])

    def embed(self, texts: Indices, *, gradient: bool = False) -> torch.Tensor:
        """Embeddings ``[n, d]``, without a graph; with ``gradient``, ``backward`` may follow.

        Raises:
            NotFiniteError: the model has no embedding for some text; on rank 0 alone, which ends the training.
        """
        ranks.broadcast_call("embed", texts, gradient)
        ranks.copy_from_first(self.parameters())
        own = np.flatnonzero(texts % ranks.size() == ranks.rank())
        lengths = self._tokens.lengths[texts[own]]
        fitting = self._budget() // self._token_bytes
        fits = gradient and int(lengths.sum()) <= fitting
        at_once = min(self._encoder.batch_tokens, fitting) if gradient else self._encoder.batch_tokens
        found = torch.zeros((len(texts), self._encoder.dimension), device=self._encoder.device)
        self._parts = []
        for part in length_sorted_batches(lengths, at_once):
            places = torch.from_numpy(own[part]).to(found.device)
            with torch.set_grad_enabled(fits):
                embeddings = self._embed(texts[own[part]])
            found[places] = embeddings.detach()
            if gradient:
                self._parts.append((places, texts[own[part]], embeddings if fits else None))
        # Every row is one rank's own, and zero on all others.
        found = ranks.all_reduce_sum(found)
        if ranks.rank() == 0:
            self._encoder.check_finite(found)
        return found

    def backward(self, gradient: torch.Tensor) -> None:
        """Add the parameters' gradients on rank 0, given the loss's ``gradient`` ``[n, d]`` at what ``embed`` returned.

        On the other ranks ``gradient`` is written over with that of rank 0.
        Where the graph of the whole batch does not fit, it is built again part by part (gradient caching, Gao et al.
        2021, arXiv 2101.06983). Without dropout both ways are equal.
        """
        ranks.broadcast_call("backward")
        ranks.copy_from_first([gradient])
        for places, texts, kept in self._parts:
            embeddings = self._embed(texts) if kept is None else kept
            torch.autograd.backward(embeddings, gradient[places])
        self._parts = []
        if ranks.size() > 1:
            for parameter in self.parameters():
                own = parameter.grad
                parameter.grad = ranks.all_reduce_sum(torch.zeros_like(parameter) if own is None else own)
                if ranks.rank():
                    parameter.grad = None

    def _embed(self, texts: Indices) -> torch.Tensor:
        # A context of its own: autocast keeps the weights it has converted until it ends, without their gradients if
        # they were first met where no gradient was wanted.
        with self._encoder.autocast():
            if self._cache is not None and self._halves is not None:
                states, mask = self._cache.states(texts)
                states = self._halves.trained(inputs_embeds=states, attention_mask=mask).last_hidden_state
            else:
                ids, mask = self._tokens.padded(texts, self._encoder.device)
                states = self._encoder.model(input_ids=ids, attention_mask=mask).last_hidden_state
            return self._encoder.pool(states, mask)

    def _budget(self) -> int:
        if self._graph_budget is not None:
            return self._graph_budget
        if self._encoder.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._encoder.device)[1] * _GRAPH_SHARE)
        return int(memory.total() * _GRAPH_SHARE / ranks.size())


def follow(spill_folder: Path) -> None:
    """On every rank but 0: compute this rank's share of what rank 0 does, until it ends.

    Raises:
        RankLostError: rank 0 is gone.
    """
    begin = ranks.receive_call()
    if begin is None:
        return
    config, encoding_config, tokens, trainable_layers, cached, graph_budget = begin
    # Its weights are those of rank 0 a moment later; float32, as ``Encoder.load`` has them.
    model = AutoModel.from_config(config, dtype=torch.float32)  # type: ignore[no-untyped-call]
    encoder = Encoder(model, None, encoding_config, default_device())
    embedder = Embedder(encoder, tokens, trainable_layers, spill_folder, cached=cached, graph_budget=graph_budget)
    found = torch.empty(0)
    while (call := ranks.receive_call()) is not None:
        match call:
            case "fill", texts:
                embedder.fill(texts)
            case "embed", texts, gradient:
                found = embedder.embed(texts, gradient=gradient)
            case ("backward",):
                embedder.backward(found)
