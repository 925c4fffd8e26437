"""The bi-encoder: texts in, embeddings out."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from trainers.errors import BadModelError, NotFiniteError
from trainers.model.attention import UNFUSED
from trainers.model.encoding_config import EncodingConfig, Kind, read_encoding_config
from trainers.model.split_model import LAYOUTS
from trainers.model.tokens import Tokens, by_length

Embeddings = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

# On two cores, 2048 to 24000 make little difference to a step; the fewer, the less memory.
BATCH_TOKENS = 4096
BATCH_TOKENS_CUDA = 65536
# What a model without any bound of its own is cut to.
DEFAULT_MAX_TOKENS = 512
# CUDA's compute capability of Volta, the first with fast products in float16; Ampere, the first with bfloat16, has 8.0.
_VOLTA = (7, 0)


def passage_text(title: str, text: str) -> str:
    """A document as it is embedded, in training, in evaluation and in serving alike."""
    return f"{title}\n{text}" if title else text


class Encoder:
    """A transformer, its tokenizer and its encoding_config.

    The transformer is always in evaluation mode: without dropout, equal texts get equal embeddings, which the frozen
    layers' cache and the masks of the loss build on.
    """

    def __init__(self, model: Any, tokenizer: Any, encoding_config: EncodingConfig, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.arithmetic = arithmetic(device, model.config.model_type)
        on_cpu = device.type == "cpu" and self.arithmetic == torch.bfloat16
        if on_cpu and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(UNFUSED)
        self.tokenizer = tokenizer
        self.encoding_config = encoding_config
        self.device = device

    @classmethod
    def load(cls, folder: Path | str, device: str | None = None) -> "Encoder":
        """Load a folder of sentence-transformers or of transformers, with float32 weights; no code of it is run.

        Raises:
            BadModelError: it has no safetensors weights, or no known architecture, or an unknown module.
        """
        folder = Path(folder)
        encoding_config = read_encoding_config(folder)
        where = torch.device(device) if device else default_device()
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        # A bar for each of a model's hundred tensors is no news, and a log file has no use for bars.
        disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            model = AutoModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32, **options)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise BadModelError(f"{folder.name}: {error}") from error
        return cls(model, tokenizer, encoding_config, where)

    @property
    def dimension(self) -> int:
        """Length of an embedding."""
        return int(self.model.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        """Tokens of a text that are read, the special ones included; what follows is cut off."""
        # Tokenizers without a bound say 10^30; RoBERTa's positions start behind the padding id, so some are lost.
        positions = int(getattr(self.model.config, "max_position_embeddings", DEFAULT_MAX_TOKENS))
        embeddings = getattr(self.model, "embeddings", None)
        padding_id = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        if padding_id is not None:
            positions -= padding_id + 1
        bound = min(int(self.tokenizer.model_max_length), positions)
        return min(self.encoding_config.max_tokens or DEFAULT_MAX_TOKENS, bound)

    def autocast(self) -> AbstractContextManager[Any]:
        """Inside, products are computed in the format ``arithmetic``; weights and their gradients stay in float32."""
        narrow = self.arithmetic != torch.float32
        return torch.autocast(self.device.type, dtype=self.arithmetic if narrow else None, enabled=narrow)

    def tokenize(self, texts: Sequence[str], kind: Kind = "passage", max_tokens: int | None = None) -> Tokens:
        """Token ids of ``texts`` with their prompt, each cut to ``max_tokens`` (default: the model's own bound)."""
        if not texts:
            return Tokens.of([])
        prompt = self.encoding_config.prompt(kind)
        prompted = [prompt + text for text in texts]
        if self.encoding_config.lower_case:
            prompted = [text.lower() for text in prompted]
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        encoded = self.tokenizer(prompted, truncation=True, max_length=limit, return_attention_mask=False)
        return Tokens.of(encoded["input_ids"])

    def pool(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Token states ``[b, t, d]`` and mask ``[b, t]`` (padding on the right) to embeddings ``[b, d]`` in float32."""
        states = states.float()
        if self.encoding_config.pooling == "mean":
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1).clamp(min=1)
        elif self.encoding_config.pooling == "cls":
            pooled = states[:, 0]
        else:
            pooled = states[torch.arange(len(states), device=states.device), mask.sum(1).clamp(min=1) - 1]
        return normalize(pooled, dim=1) if self.encoding_config.normalize else pooled

    def encode(
        self,
        texts: Sequence[str],
        kind: Kind = "passage",
        *,
        batch_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> Embeddings:
        """Embeddings ``[n, d]`` of ``texts`` in their order; ``progress`` hears of (texts done, texts in all)."""
        return self.encode_tokens(self.tokenize(texts, kind), batch_tokens=batch_tokens, progress=progress)

    def encode_tokens(
        self, tokens: Tokens, *, batch_tokens: int | None = None, progress: Progress | None = None
    ) -> Embeddings:
        """Like ``encode``, for what is tokenized already.

        Raises:
            NotFiniteError: the model has no embedding for some text.
        """
        embeddings = np.empty((len(tokens), self.dimension), dtype=np.float32)
        done = 0
        with torch.inference_mode(), self.autocast():
            for rows in by_length(tokens.lengths, batch_tokens or self.batch_tokens):
                ids, mask = tokens.padded(rows, self.device)
                states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                embeddings[rows] = self.pool(states, mask).cpu().numpy()
                done += len(rows)
                if progress is not None:
                    progress(done, len(tokens))
        self.check_finite(torch.from_numpy(embeddings))
        return embeddings

    def check_finite(self, embeddings: torch.Tensor) -> None:
        """Refuse what is no number: a search would find it before everything else, and nobody would know.

        Raises:
            NotFiniteError: the model has no embedding for some text, in this format.
        """
        if not torch.isfinite(embeddings).all():
            raise NotFiniteError(f"an embedding, computed in {self.arithmetic}")

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, with padding, that suit the device."""
        return BATCH_TOKENS_CUDA if self.device.type == "cuda" else BATCH_TOKENS


def default_device() -> torch.device:
    """The process's GPU where it has one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def arithmetic(device: torch.device, model_type: str) -> torch.dtype:
    """bfloat16 where the processor multiplies matrices in it by itself; float16 on older GPUs that do in that one,
    for models whose states stay within its range; else float32: what is emulated is slower.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        layout = LAYOUTS.get(model_type)
        within_range = layout is not None and layout.float16
        tensor_cores = torch.cuda.get_device_capability(device) >= _VOLTA
        return torch.float16 if within_range and tensor_cores else torch.float32
    found = torch.cpu.get_capabilities()
    has_bfloat16 = device.type == "cpu" and (found.get("avx512_bf16") or found.get("amx_bf16"))
    return torch.bfloat16 if has_bfloat16 else torch.float32
