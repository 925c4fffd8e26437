"""Similarities of many texts with many others, never all in memory at once."""

from collections.abc import Iterator

import torch

# Similarities that are in memory at once (float32: 128 MB).
TILE = 32 * 1024**2


def tiles(queries: torch.Tensor, passages: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """The rows of ``queries @ passages.T`` ``[n, m]``, some at a time: which they are, and they themselves."""
    rows = max(1, TILE // max(1, len(passages)))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        yield part, queries[part] @ passages.T
