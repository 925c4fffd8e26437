"""The bi-encoder: questions and passages to embeddings."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from trainers.errors import BadModelError, NotFiniteError, TrainerError
from trainers.model.attention import UNFUSED
from trainers.model.encoding_config import EncodingConfig, TextKind, read_encoding_config
from trainers.model.split_model import LAYOUTS
from trainers.model.tokens import Tokens, length_sorted_batches

Embeddings = npt.NDArray[np.float32]
# Called with (texts done, texts in total).
ProgressCallback = Callable[[int, int], None]

# On two cores, 2048 to 24000 make little difference to a step's time; fewer need less memory.
BATCH_TOKENS = 4096
BATCH_TOKENS_CUDA = 65536
# Truncation of a model that declares no maximum length.
DEFAULT_MAX_TOKENS = 512
# CUDA compute capability of Volta, the first with fast matrix products in float16; Ampere (8.0) added bfloat16.
_VOLTA = (7, 0)


def passage_text(title: str, text: str) -> str:
    """The text of a document that is embedded: in training, evaluation and serving alike."""
    return f"{title}\n{text}" if title else text


class Encoder:
    """A transformer with its tokenizer and encoding configuration.

    The transformer is always in evaluation mode: without dropout, equal texts have equal embeddings, which the prefix
    cache and the masks of the loss rely on.
    """

    def __init__(self, model: Any, tokenizer: Any, encoding_config: EncodingConfig, device: torch.device) -> None:
        self.model = model.to(device).eval()
        self.compute_dtype = compute_dtype(device, model.config.model_type)
        bfloat16_on_cpu = device.type == "cpu" and self.compute_dtype == torch.bfloat16
        if bfloat16_on_cpu and model.config._attn_implementation == "sdpa":
            model.set_attn_implementation(UNFUSED)
        self.tokenizer = tokenizer
        self.encoding_config = encoding_config
        self.device = device

    @classmethod
    def load(cls, folder: Path | str, device: str | None = None) -> "Encoder":
        """Load a model folder of sentence-transformers or transformers with float32 weights; remote code is never run.

        Raises:
            BadModelError: no safetensors weights, unreadable files, quantization, an adapter, or an unsupported
                architecture, module or pooling mode.
        """
        folder = Path(folder)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        # A progress bar over a model's tensors only clutters a log file.
        disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            encoding_config = read_encoding_config(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            config = _config_without_code(folder, options)
            model = AutoModel.from_pretrained(
                folder, config=config, use_safetensors=True, dtype=torch.float32, **options
            )
        except (TrainerError, MemoryError):
            raise
        # The files of a model are untrusted: whatever fails on them, the model is not usable.
        except Exception as error:
            raise BadModelError(f"{folder.name}: {error}") from error
        return cls(model, tokenizer, encoding_config, torch.device(device) if device else default_device())

    @property
    def dimension(self) -> int:
        """Dimension of an embedding."""
        return int(self.model.config.hidden_size)

    @property
    def max_tokens(self) -> int:
        """Maximum sequence length, special tokens included; longer texts are truncated."""
        # Tokenizers without a maximum report 10^30. RoBERTa's positions start after the padding id, which costs some.
        positions = int(getattr(self.model.config, "max_position_embeddings", DEFAULT_MAX_TOKENS))
        embeddings = getattr(self.model, "embeddings", None)
        padding_id = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        if padding_id is not None:
            positions -= padding_id + 1
        bound = min(int(self.tokenizer.model_max_length), positions)
        return min(self.encoding_config.max_tokens or DEFAULT_MAX_TOKENS, bound)

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision in ``compute_dtype``; weights and their gradients stay in float32."""
        mixed = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype if mixed else None, enabled=mixed)

    def tokenize(self, texts: Sequence[str], kind: TextKind = "passage", max_tokens: int | None = None) -> Tokens:
        """Token ids of ``texts`` with their prompt, truncated to ``max_tokens`` (default: ``self.max_tokens``)."""
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
        """Hidden states ``[b, t, d]`` and mask ``[b, t]`` (padded on the right) to embeddings ``[b, d]`` in float32."""
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
        kind: TextKind = "passage",
        *,
        batch_tokens: int | None = None,
        progress: ProgressCallback | None = None,
    ) -> Embeddings:
        """Embeddings ``[n, d]`` of ``texts``, in order.

        Raises:
            NotFiniteError: the embedding of some text has NaN or infinite values.
        """
        return self.encode_tokens(self.tokenize(texts, kind), batch_tokens=batch_tokens, progress=progress)

    def encode_tokens(
        self, tokens: Tokens, *, batch_tokens: int | None = None, progress: ProgressCallback | None = None
    ) -> Embeddings:
        """Like ``encode``, for texts that are tokenized already."""
        embeddings = np.empty((len(tokens), self.dimension), dtype=np.float32)
        done = 0
        with torch.inference_mode(), self.autocast():
            for rows in length_sorted_batches(tokens.lengths, batch_tokens or self.batch_tokens):
                ids, mask = tokens.padded(rows, self.device)
                states = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
                embeddings[rows] = self.pool(states, mask).cpu().numpy()
                done += len(rows)
                if progress is not None:
                    progress(done, len(tokens))
        self.check_finite(torch.from_numpy(embeddings))
        return embeddings

    def check_finite(self, embeddings: torch.Tensor) -> None:
        """Reject NaN and infinite values: a search would rank them first without any error.

        Raises:
            NotFiniteError: some embedding has such values.
        """
        if not torch.isfinite(embeddings).all():
            raise NotFiniteError(f"an embedding computed in {self.compute_dtype}")

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included, that suit the device."""
        return BATCH_TOKENS_CUDA if self.device.type == "cuda" else BATCH_TOKENS


def _config_without_code(folder: Path, options: dict[str, Any]) -> Any:
    """The configuration of a model, which must not choose the code that computes it: kernels would be fetched from
    wherever it says, and the weights of an adapter's base model as well.
    """
    if (folder / "adapter_config.json").exists():
        raise BadModelError(f"{folder.name}: adapters are not supported")
    config = AutoConfig.from_pretrained(folder, **options)
    if getattr(config, "quantization_config", None) is not None:
        raise BadModelError(f"{folder.name}: quantization_config of config.json is not supported")
    # The library's own choice, instead of one that was read from the file.
    config._attn_implementation = config._experts_implementation = None
    return config


def default_device() -> torch.device:
    """The GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(device: torch.device, model_type: str) -> torch.dtype:
    """The dtype of matrix products: bfloat16 where the hardware supports it natively, float16 on GPUs that support only
    that, for models whose hidden states fit its range, else float32. Emulated formats are slower than float32.
    """
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        layout = LAYOUTS.get(model_type)
        fits_float16 = layout is not None and layout.float16
        tensor_cores = torch.cuda.get_device_capability(device) >= _VOLTA
        return torch.float16 if fits_float16 and tensor_cores else torch.float32
    capabilities = torch.cpu.get_capabilities()
    native_bfloat16 = device.type == "cpu" and (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return torch.bfloat16 if native_bfloat16 else torch.float32
