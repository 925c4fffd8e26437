"""What the frozen layers compute for a text never changes: computed once and kept, it is where every epoch starts."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import nn

from trainers.encoder import Encoder, has_bfloat16
from trainers.tokens import Tokens, by_length, padding

Indices = npt.NDArray[np.int64]

# The rest is for the model, its gradients and the neighbours on the machine.
MEMORY_SHARE = 0.4


class PrefixCache:
    """The states behind the frozen layers of the texts in ``tokens``, unpadded, in one flat buffer ``[tokens, d]``.

    They are kept in the format that the trained layers compute in. A buffer above ``memory_budget`` bytes lies in a
    file of ``spill_folder`` that is mapped into memory. States are computed when a text is first asked for.
    """

    def __init__(
        self,
        encoder: Encoder,
        prefix: nn.Module,
        tokens: Tokens,
        spill_folder: Path,
        memory_budget: int | None = None,
    ) -> None:
        self._encoder, self._prefix, self._tokens = encoder, prefix, tokens
        dtype = torch.bfloat16 if has_bfloat16(encoder.device) else torch.float32
        # One row more, of zeros, for padding: what is not written yet may hold NaN, which no attention mask hides.
        shape = (len(tokens.ids) + 1, encoder.dimension)
        self.size_bytes = shape[0] * shape[1] * dtype.itemsize
        budget = int(psutil.virtual_memory().available * MEMORY_SHARE) if memory_budget is None else memory_budget
        self.spilled = self.size_bytes > budget
        if self.spilled:
            spill_folder.mkdir(parents=True, exist_ok=True)
            path = str(spill_folder / "prefix-states.bin")
            flat = torch.from_file(path, shared=True, size=shape[0] * shape[1], dtype=dtype)
            self._states = flat.view(shape)
        else:
            # Pages that are never written take no memory, so texts that are never asked for cost nothing.
            self._states = torch.empty(shape, dtype=dtype)
        self._states[-1] = 0
        self._filled = np.zeros(len(tokens), dtype=np.bool_)

    def states(self, indices: Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """States ``[n, longest, d]`` and mask ``[n, longest]`` of the texts."""
        self._fill(np.unique(indices[~self._filled[indices]]))
        where, mask = padding(self._tokens.starts, indices, pad_at=len(self._tokens.ids))
        states = self._states.index_select(0, torch.from_numpy(where.ravel())).view(*where.shape, -1)
        device = self._encoder.device
        return states.to(device), torch.from_numpy(mask.astype(np.int64)).to(device)

    def _fill(self, missing: Indices) -> None:
        lengths = self._tokens.lengths[missing]
        with torch.no_grad(), self._encoder.autocast():
            for batch in by_length(lengths, self._encoder.batch_tokens):
                ids, mask = self._tokens.padded(missing[batch], self._encoder.device)
                states = self._prefix(input_ids=ids, attention_mask=mask).last_hidden_state
                where = padding(self._tokens.starts, missing[batch])[0][mask.cpu().numpy().astype(bool)]
                self._states[torch.from_numpy(where)] = states[mask.bool()].to("cpu", self._states.dtype)
        self._filled[missing] = True
