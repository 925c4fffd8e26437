"""What the frozen layers compute for a text never changes: computed once and kept, it is where every epoch starts."""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import structlog
import torch
from torch import nn

from trainers.engine import memory
from trainers.model.encoder import Encoder
from trainers.model.tokens import Tokens, length_sorted_batches, padded_positions

log = structlog.get_logger()

Indices = npt.NDArray[np.int64]

# The rest is for the model, its gradients and the neighbours on the machine.
MEMORY_SHARE = 0.4


class PrefixCache:
    """The states behind the frozen layers of the texts in ``tokens``, unpadded, in one flat buffer ``[tokens, d]``.

    They are kept in the format that the trained layers compute in, on the GPU if a share of its free memory holds them
    all. A buffer above ``memory_budget`` bytes of main memory lies in a file of ``spill_folder`` that is mapped into
    memory. States are computed when a text is first asked for, so the frozen layers never run more often than without.

    Raises:
        OSError: there is no room for that file.
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
        # One row more, of zeros, for padding: what is not written yet may hold NaN, which no attention mask hides.
        shape = (len(tokens.ids) + 1, encoder.dimension)
        dtype = encoder.compute_dtype
        self.size_bytes = shape[0] * shape[1] * dtype.itemsize
        budget = int(memory.available() * MEMORY_SHARE) if memory_budget is None else memory_budget
        on_device = self.size_bytes <= (_device_budget(encoder.device) if device_budget is None else device_budget)
        self.spilled = self.size_bytes > budget and not on_device
        if self.spilled:
            spill_folder.mkdir(parents=True, exist_ok=True)
            path = spill_folder / "prefix-states.bin"
            with path.open("wb") as file:
                # Taken now: a mapped file that finds the disk full later would end the process without a word.
                os.posix_fallocate(file.fileno(), 0, self.size_bytes)
            flat = torch.from_file(str(path), shared=True, size=shape[0] * shape[1], dtype=dtype)
            self._states = flat.view(shape)
        else:
            # Pages that are never written take no main memory, so texts that are never asked for cost nothing there:
            # pinned ones, from which a GPU copies faster, would all be taken at once.
            self._states = torch.empty(shape, dtype=dtype, device=encoder.device if on_device else "cpu")
        self._states[-1] = 0
        self._filled = np.zeros(len(tokens), dtype=np.bool_)

    @classmethod
    def that_fits(cls, encoder: Encoder, prefix: nn.Module, tokens: Tokens, spill_folder: Path) -> "PrefixCache | None":
        """A cache; without room for it none, and a word about that."""
        try:
            return cls(encoder, prefix, tokens, spill_folder)
        except OSError as error:
            log.warning("no room for what the frozen layers compute", folder=str(spill_folder), reason=str(error))
            return None

    def states(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """States ``[n, longest, d]`` and mask ``[n, longest]`` of the texts."""
        self.fill(indices)
        where, mask = padded_positions(self._tokens.starts, indices, padding_position=len(self._tokens.ids))
        rows = torch.from_numpy(where.ravel()).to(self._states.device)
        states = self._states.index_select(0, rows).view(*where.shape, -1)
        device = self._encoder.device
        return states.to(device), torch.from_numpy(mask.astype(np.int64)).to(device)

    def fill(self, indices: Indices) -> None:
        """Run the frozen layers for those of the texts that they have not run for."""
        missing = np.unique(indices[~self._filled[indices]])
        lengths = self._tokens.lengths[missing]
        with torch.no_grad(), self._encoder.autocast():
            for batch in length_sorted_batches(lengths, self._encoder.batch_tokens):
                ids, mask = self._tokens.padded(missing[batch], self._encoder.device)
                states = self._prefix(input_ids=ids, attention_mask=mask).last_hidden_state
                where = padded_positions(self._tokens.starts, missing[batch])[0][mask.cpu().numpy().astype(bool)]
                rows = torch.from_numpy(where).to(self._states.device)
                self._states[rows] = states[mask.bool()].to(self._states)
        self._filled[missing] = True


def _device_budget(device: torch.device) -> int:
    """Bytes of a GPU's free memory that states may take; elsewhere there is no memory but the main one."""
    return int(torch.cuda.mem_get_info(device)[0] * MEMORY_SHARE) if device.type == "cuda" else -1
