"""Caches the hidden states behind the frozen layers: they never change, so each text passes these layers only once."""

import os
from pathlib import Path

import numpy as np
import structlog
import torch
from torch import nn

from trainers.engine import memory
from trainers.model.encoder import Encoder
from trainers.model.tokens import Indices, Tokens, length_sorted_batches, padded_positions

log = structlog.get_logger()

# Share of the available memory; the rest is for the model, its gradients and other processes.
MEMORY_SHARE = 0.4


class PrefixCache:
    """Hidden states behind the frozen layers for all texts in ``tokens``, unpadded, in one flat buffer ``[tokens, d]``.

    Their dtype is the one that the trained layers compute in. The buffer is on the GPU if a share of its free memory
    holds it, else in main memory; above ``memory_budget`` bytes it is a memory-mapped file in ``spill_folder``. A
    text's states are computed on first use, so the frozen layers never run more often than without a cache.

    Raises:
        OSError: the disk has no space for the file.
    """

    def __init__(
        self,
        encoder: Encoder,
        prefix: nn.Module,
        tokens: Tokens,
        spill_folder: Path,
        *,
        memory_budget: int | None = None,
        device_budget: int | None = None,
    ) -> None:
        self._encoder, self._prefix, self._tokens = encoder, prefix, tokens
        # The last row is zeros, for padding: unwritten rows may hold NaN, which no attention mask hides.
        shape = (len(tokens.ids) + 1, encoder.hidden_size)
        dtype = encoder.compute_dtype
        self.size_bytes = shape[0] * shape[1] * dtype.itemsize
        budget = int(memory.available() * MEMORY_SHARE) if memory_budget is None else memory_budget
        on_device = self.size_bytes <= (_device_budget(encoder.device) if device_budget is None else device_budget)
        self.spilled = self.size_bytes > budget and not on_device
        if self.spilled:
            spill_folder.mkdir(parents=True, exist_ok=True)
            path = spill_folder / "prefix-states.bin"
            with path.open("wb") as file:
                # Allocate now: if the disk fills up later, a write to the mapping kills the process (SIGBUS).
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
            flat = torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype)
            self._states = flat.view(shape)
        else:
            # Not pinned, although a GPU copies faster from pinned pages: those are all allocated at once, whereas pages
            # that are never written, of texts that are never used, take no memory.
            self._states = torch.empty(shape, dtype=dtype, device=encoder.device if on_device else "cpu")
        self._states[-1] = 0
        self._filled = np.zeros(len(tokens), dtype=np.bool_)

    @classmethod
    def create_if_space(
        cls, encoder: Encoder, prefix: nn.Module, tokens: Tokens, spill_folder: Path
    ) -> "PrefixCache | None":
        """A cache, or None (with a warning in the log) if the disk has no space for it."""
        try:
            return cls(encoder, prefix, tokens, spill_folder)
        except OSError as error:
            log.warning("no space for the prefix cache, training without", folder=str(spill_folder), error=str(error))
            return None

    def states(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Hidden states ``[n, longest, d]`` and attention mask ``[n, longest]``, on the encoder's device."""
        self.fill(indices)
        positions, mask = padded_positions(self._tokens.starts, indices, padding_position=len(self._tokens.ids))
        rows = torch.from_numpy(positions.ravel()).to(self._states.device)
        states = self._states.index_select(0, rows).view(*positions.shape, -1)
        device = self._encoder.device
        return states.to(device), torch.from_numpy(mask.astype(np.int64)).to(device)

    def fill(self, indices: Indices) -> None:
        """Run the frozen layers for those of the texts that are not cached yet."""
        missing = np.unique(indices[~self._filled[indices]])
        lengths = self._tokens.lengths[missing]
        with torch.no_grad(), self._encoder.autocast():
            for batch in length_sorted_batches(lengths, self._encoder.batch_tokens):
                ids, mask = self._tokens.padded(missing[batch], self._encoder.device)
                states = self._prefix(input_ids=ids, attention_mask=mask).last_hidden_state
                positions = padded_positions(self._tokens.starts, missing[batch])[0][mask.cpu().numpy().astype(bool)]
                rows = torch.from_numpy(positions).to(self._states.device)
                self._states[rows] = states[mask.bool()].to(self._states)
        self._filled[missing] = True


def _device_budget(device: torch.device) -> int:
    """Bytes of a GPU's free memory that the buffer may take; negative on a CPU, which has main memory only."""
    return int(torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE) if device.type == "cuda" else -1
