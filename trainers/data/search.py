"""Exact nearest-neighbour search by inner product, in tiles of bounded memory."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

# Similarities of one tile (float32: 128 MB).
TILE = 32 * 1024**2


def similarity_tiles(queries: torch.Tensor, passages: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The matrix ``queries @ passages.T`` ``[n, m]`` in tiles of whole rows: their range, and the tile."""
    rows = max(1, TILE // max(1, len(passages)))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        yield part, queries[part] @ passages.T


def nearest(queries: torch.Tensor, passages: torch.Tensor, depth: int) -> npt.NDArray[np.int64]:
    """The ``depth`` nearest passages of each query ``[n, depth]``, nearest first; -1 past the last passage.

    ``queries`` are ``[n, d]``, ``passages`` ``[m, d]``.
    """
    neighbours = np.full((len(queries), depth), -1, dtype=np.int64)
    depth = min(depth, len(passages))
    for part, similarities in similarity_tiles(queries, passages):
        neighbours[part, :depth] = similarities.topk(depth, dim=1).indices.cpu().numpy()
    return neighbours
