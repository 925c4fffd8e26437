"""Texts as token ids in one flat array, and the plan by which they are put into batches without wasted padding."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Tokens:
    """``ids[starts[i]:starts[i + 1]]`` are the token ids of text ``i``."""

    ids: npt.NDArray[np.int32]
    starts: Indices

    @classmethod
    def of(cls, rows: list[list[int]]) -> "Tokens":
        """Lay rows of ids one after the other."""
        starts = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=starts[1:])
        ids = np.fromiter((token for row in rows for token in row), dtype=np.int32, count=int(starts[-1]))
        return cls(ids, starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> Indices:
        """Tokens of each text."""
        return np.diff(self.starts)

    def padded(self, indices: Indices, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, both ``[len(indices), longest]``, padded on the right with token 0."""
        where, mask = padding(self.starts, indices)
        ids = np.where(mask, self.ids[where], 0).astype(np.int64)
        return torch.from_numpy(ids).to(device), torch.from_numpy(mask.astype(np.int64)).to(device)


def padding(starts: Indices, indices: Indices, pad_at: int = 0) -> tuple[Indices, npt.NDArray[np.bool_]]:
    """Where each position of a padded batch lies in the flat array (padding: ``pad_at``), and which are real."""
    lengths = starts[indices + 1] - starts[indices]
    columns = np.arange(int(lengths.max(initial=0)))
    mask = columns[None, :] < lengths[:, None]
    return np.where(mask, starts[indices][:, None] + columns[None, :], pad_at), mask


def by_length(lengths: Indices, batch_tokens: int) -> Iterator[Indices]:
    """Batches of indices, longest texts first, each of at most ``batch_tokens`` with its padding (or of one text).

    Longest first, so that what does not fit into memory fails at the start.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // max(1, int(lengths[order[start]])))
        yield order[start : start + count]
        start += count
