"""Token ids of many texts in one flat array, and length-sorted batches with little padding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """``ids[starts[i]:starts[i + 1]]`` are the token ids of text ``i``, which is a question if ``queries[i]``."""

    ids: npt.NDArray[np.int32]
    starts: Indices
    queries: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, ids: npt.ArrayLike, lengths: npt.ArrayLike, *, query: bool = False) -> "Tokens":
        """Token ids of all texts in a row, and the number of each text's."""
        starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        return cls(np.asarray(ids, dtype=np.int32), starts, np.full(len(starts) - 1, query))

    @classmethod
    def concatenate(cls, first: "Tokens", second: "Tokens") -> "Tokens":
        """The texts of both."""
        starts = np.concatenate([first.starts, second.starts[1:] + first.starts[-1]])
        queries = np.concatenate([first.queries, second.queries])
        return cls(np.concatenate([first.ids, second.ids]), starts, queries)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Indices:
        """Token count of each text ``[n]``."""
        return np.diff(self.starts)

    def padded(self, indices: Indices, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, both ``[len(indices), longest]``, padded on the right with token 0."""
        positions, mask = padded_positions(self.starts, indices)
        ids = np.where(mask, self.ids[positions], 0).astype(np.int64)
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def padded_positions(
    starts: Indices, indices: Indices, padding_position: int = 0
) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Positions in the flat array and mask of the padded batch of the texts ``indices``, both ``[n, longest]``.

    Padding has position ``padding_position`` and mask false.
    """
    lengths = starts[indices + 1] - starts[indices]
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns[None, :] < lengths[:, None]
    return np.where(mask, starts[indices][:, None] + columns[None, :], padding_position), mask


def length_sorted_batches(lengths: Indices, batch_tokens: int) -> Iterator[Indices]:
    """Indices in batches of at most ``batch_tokens`` tokens with padding (or of a single longer text).

    Longest texts first, so that running out of memory happens at the start.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count
