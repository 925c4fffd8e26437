"""Forward and backward passes for texts by their index; every rank computes its share of them."""

from pathlib import Path

import numpy as np
import torch

from trainers.engine import memory, ranks
from trainers.engine.prefix_cache import PrefixCache
from trainers.model.encoder import Encoder
from trainers.model.split_model import freeze, split_model
from trainers.model.tokens import Indices, Tokens, length_sorted_batches

# Values that autograd saves for one token in one layer, in units of the hidden size: inputs of products, norms and the
# activation, the wide ones counted four times.
_SAVED_PER_LAYER = 24
# A step whose graph would exceed this share of the memory is computed with gradient caching (see ``backward``). A share
# of the total memory, not of what is free: results with and without it differ in their last bits, and a repeated run
# must give the same.
_GRAPH_SHARE = 0.2


class Embedder:
    """Embeds texts by their index in ``tokens``, with an encoder of which the last layers or all train.

    Where the model can be split, the frozen layers run once for each text (``PrefixCache``). With several ranks,
    ``fill``, ``embed`` and ``backward`` called on rank 0 run on all of them, with rank 0's weights. A text always
    belongs to the same rank, by its index, so that its frozen part runs on that one alone. Ranks exchange only
    embeddings and the gradient at them: the loss, which needs all embeddings together, is computed on rank 0.
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
        # First, so that rank 0 refuses an impossible job before the other ranks start, and can still report it.
        freeze(encoder.transformer, trainable_layers)
        ranks.broadcast_call(encoder.folder, tokens, trainable_layers, cached, graph_budget)
        ranks.broadcast_tensors(encoder.model.state_dict().values())
        self._encoder, self._tokens = encoder, tokens
        self._split = split_model(encoder.transformer, trainable_layers) if cached else None
        self._cache = (
            PrefixCache.create_if_space(encoder, self._split.prefix, tokens, spill_folder) if self._split else None
        )
        layers = encoder.transformer.config.num_hidden_layers if isinstance(trainable_layers, str) else trainable_layers
        # On a CPU, the unfused attention saves about as much more as bfloat16 takes less.
        width = encoder.compute_dtype.itemsize if encoder.device.type == "cuda" else 4
        self._graph_bytes_per_token = layers * _SAVED_PER_LAYER * encoder.hidden_size * width
        self._graph_budget = graph_budget
        # The parts of the last batch, for ``backward``: rows in the batch, texts, embeddings if they keep their graph.
        self._parts: list[tuple[torch.Tensor, Indices, torch.Tensor | None]] = []

    @property
    def cached(self) -> bool:
        """Whether the frozen layers run only once for each text."""
        return self._cache is not None

    def parameters(self) -> list[torch.nn.Parameter]:
        """The trainable parameters."""
        return [parameter for parameter in self._encoder.model.parameters() if parameter.requires_grad]

    def fill(self, texts: Indices) -> None:
        """Compute the prefix cache for ``texts``; without a cache a no-op."""
        ranks.broadcast_call("fill", texts)
        if self._cache is not None:
            self._cache.fill(texts[texts % ranks.world_size() == ranks.rank()])

    def embed(self, texts: Indices, *, gradient: bool = False) -> torch.Tensor:
        """Embeddings ``[n, d]`` of ``texts``, detached; with ``gradient``, ``backward`` may follow.

        Raises:
            NotFiniteError: an embedding is not finite; raised on rank 0 alone, which ends the training.
        """
        ranks.broadcast_call("embed", texts, gradient)
        ranks.broadcast_tensors(self.parameters())
        owned = np.flatnonzero(texts % ranks.world_size() == ranks.rank())
        lengths = self._tokens.lengths[texts[owned]]
        max_graph_tokens = self._graph_memory() // self._graph_bytes_per_token
        keep_graph = gradient and int(lengths.sum()) <= max_graph_tokens
        batch_tokens = self._encoder.batch_tokens
        embeddings = torch.zeros((len(texts), self._encoder.dimension), device=self._encoder.device)
        self._parts = []
        for part in length_sorted_batches(lengths, min(batch_tokens, max_graph_tokens) if gradient else batch_tokens):
            rows, part_texts = torch.from_numpy(owned[part]).to(embeddings.device), texts[owned[part]]
            with torch.set_grad_enabled(keep_graph):
                part_embeddings = self._forward(part_texts)
            embeddings[rows] = part_embeddings.detach()
            if gradient:
                self._parts.append((rows, part_texts, part_embeddings if keep_graph else None))
        # Each row is computed on one rank, and zero on all others.
        embeddings = ranks.all_reduce_sum(embeddings)
        if ranks.rank() == 0:
            self._encoder.check_finite(embeddings)
        return embeddings

    def backward(self, gradient: torch.Tensor) -> None:
        """Accumulate the parameters' gradients on rank 0, given the ``gradient`` ``[n, d]`` at the last ``embed``.

        Where the graph of the whole batch did not fit, it is rebuilt part by part (gradient caching, Gao et al. 2021,
        arXiv 2101.06983); without dropout both ways are equal. On worker ranks, ``gradient`` is an output buffer for
        that of rank 0.
        """
        ranks.broadcast_call("backward")
        ranks.broadcast_tensors([gradient])
        for rows, texts, graph in self._parts:
            embeddings = self._forward(texts) if graph is None else graph
            torch.autograd.backward(embeddings, gradient[rows])
        self._parts = []
        if ranks.world_size() > 1:
            for parameter in self.parameters():
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                total = ranks.all_reduce_sum(own)
                parameter.grad = total if ranks.rank() == 0 else None

    def _forward(self, texts: Indices) -> torch.Tensor:
        # A new autocast context for each part: autocast caches the converted weights until it ends, and without their
        # gradients if they were first used under no_grad.
        with self._encoder.autocast():
            if self._cache is not None and self._split is not None:
                states, mask = self._cache.states(texts)
                states = self._split.trained(inputs_embeds=states, attention_mask=mask).last_hidden_state
            else:
                ids, mask = self._tokens.padded(texts, self._encoder.device)
                states = self._encoder.hidden_states(ids, mask)
            return self._encoder.pool(states, mask, self._tokens.queries[texts])

    def _graph_memory(self) -> int:
        """Bytes that a step's graph may take on this rank."""
        if self._graph_budget is not None:
            return self._graph_budget
        if self._encoder.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._encoder.device)[1] * _GRAPH_SHARE)
        return int(memory.total() * _GRAPH_SHARE / ranks.world_size())


def run_worker_rank(spill_folder: Path) -> None:
    """On every rank but 0: execute rank 0's calls for this rank's share of the texts, until rank 0 ends.

    Raises:
        RankLostError: rank 0 is gone.
    """
    setup = ranks.receive_call()
    if setup is None:
        return
    folder, tokens, trainable_layers, cached, graph_budget = setup
    # All ranks are on one machine. The Embedder overwrites the weights with those of rank 0.
    encoder = Encoder.load(folder)
    embedder = Embedder(encoder, tokens, trainable_layers, spill_folder, cached=cached, graph_budget=graph_budget)
    embeddings = torch.empty(0)
    while (call := ranks.receive_call()) is not None:
        match call:
            case "fill", texts:
                embedder.fill(texts)
            case "embed", texts, gradient:
                embeddings = embedder.embed(texts, gradient=gradient)
            case ("backward",):
                # A buffer of the right shape; its values are not needed any more.
                embedder.backward(embeddings)
