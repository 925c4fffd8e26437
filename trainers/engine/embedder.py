"""Forward and backward passes for texts by their index; every rank computes its share of them."""

from pathlib import Path

import numpy as np
import torch

from trainers.engine import memory, ranks
from trainers.engine.prefix_cache import PrefixCache
from trainers.model.encoder import Encoder
from trainers.model.split_model import freeze, split_model
from trainers.model.tokens import Indices, Tokens, length_sorted_batches

# Values that autograd saves for one token in one layer, in units of the hidden size, beside those of the wide layer's
# width: inputs of products, norms and the activation. Measured with MiniLM in bfloat16: 9 and 3.
_SAVED_HIDDEN, _SAVED_INTERMEDIATE = 12, 3
# Share of the memory that is free before the first step; the rest is for gradients, optimizer and other processes.
_GRAPH_SHARE = 0.5


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
        self._trained_layers = trainable_layers
        self._graph_budget = self._free_memory() if graph_budget is None else graph_budget
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
        embeddings = torch.zeros((len(texts), self._encoder.dimension), device=self._encoder.device)
        self._parts, graph_bytes = [], 0
        # One context for all parts: autocast converts each weight once, not once in every part.
        with torch.set_grad_enabled(gradient), self._encoder.autocast():
            for part in length_sorted_batches(lengths, self._encoder.batch_tokens):
                rows, part_texts = torch.from_numpy(owned[part]).to(embeddings.device), texts[owned[part]]
                # With a graph even where it is dropped at once, so that ``_graph_budget`` changes no bit of the result.
                part_embeddings = self._forward(part_texts)
                embeddings[rows] = part_embeddings.detach()
                if gradient:
                    graph_bytes += self._graph_bytes(len(part), int(lengths[part].max()))
                    kept = part_embeddings if graph_bytes <= self._graph_budget else None
                    self._parts.append((rows, part_texts, kept))
        # Each row is computed on one rank, and zero on all others.
        embeddings = ranks.all_reduce_sum(embeddings)
        if ranks.rank() == 0:
            self._encoder.check_finite(embeddings)
        return embeddings

    def backward(self, gradient: torch.Tensor) -> None:
        """Accumulate the parameters' gradients on rank 0, given the ``gradient`` ``[n, d]`` at the last ``embed``.

        Where the graph of a part did not fit, it is rebuilt (gradient caching, Gao et al. 2021, arXiv 2101.06983), with
        the same bits, as nothing is dropped out. On worker ranks, ``gradient`` is an output buffer for that of rank 0.
        """
        ranks.broadcast_call("backward")
        ranks.broadcast_tensors([gradient])
        # A part's graph is freed before the next one is rebuilt.
        parts, self._parts = self._parts[::-1], []
        while parts:
            rows, texts, embeddings = parts.pop()
            if embeddings is None:
                with self._encoder.autocast():
                    embeddings = self._forward(texts)
            torch.autograd.backward(embeddings, gradient[rows])
            del embeddings
        if ranks.world_size() > 1:
            for parameter in self.parameters():
                own = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                total = ranks.all_reduce_sum(own)
                parameter.grad = total if ranks.rank() == 0 else None

    def _forward(self, texts: Indices) -> torch.Tensor:
        if self._cache is not None and self._split is not None:
            states, mask = self._cache.states(texts)
            states = self._split.trained(inputs_embeds=states, attention_mask=mask).last_hidden_state
        else:
            ids, mask = self._tokens.padded(texts, self._encoder.device)
            states = self._encoder.hidden_states(ids, mask)
        return self._encoder.pool(states, mask, self._tokens.queries[texts])

    def _graph_bytes(self, texts: int, longest: int) -> int:
        """Estimated size of the graph of ``texts`` texts, each padded to ``longest`` tokens."""
        config, hidden = self._encoder.transformer.config, self._encoder.hidden_size
        layers = config.num_hidden_layers if isinstance(self._trained_layers, str) else self._trained_layers
        saved = _SAVED_HIDDEN * hidden + _SAVED_INTERMEDIATE * getattr(config, "intermediate_size", 4 * hidden)
        if self._encoder.device.type == "cpu":
            # The probabilities of the unfused attention.
            saved += config.num_attention_heads * longest
        return int(texts * longest * layers * saved * self._encoder.compute_dtype.itemsize)

    def _free_memory(self) -> int:
        """Bytes that a step's graph may take on this rank."""
        if self._encoder.device.type == "cuda":
            return int(torch.cuda.mem_get_info(self._encoder.device)[0] * _GRAPH_SHARE)
        return int(memory.available() * _GRAPH_SHARE / ranks.world_size())


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
