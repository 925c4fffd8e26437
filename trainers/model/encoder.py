"""The bi-encoder: questions and passages to embeddings, by the modules of sentence-transformers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Router
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from torch.nn.functional import normalize
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from foldtune.model_folder import MODULES
from trainers.errors import BadModelError, NotFiniteError, TrainerError
from trainers.model.attention import UNFUSED
from trainers.model.base_models import check_folder, module_folders, router_structure
from trainers.model.split_model import LAYOUTS
from trainers.model.tokens import Tokens, length_sorted_batches

Embeddings = npt.NDArray[np.float32]
TextKind = Literal["query", "passage"]
# Called with (texts done, texts in total).
ProgressCallback = Callable[[int, int], None]

# On two cores, 2048 to 24000 make little difference to a step's time; fewer need less memory.
BATCH_TOKENS = 4096
BATCH_TOKENS_CUDA = 65536
# Truncation of a model that declares no maximum length.
DEFAULT_MAX_TOKENS = 512
# A tokenizer's maximum above it stands for none.
UNBOUNDED = 10**9
# sentence-transformers pads what it tokenizes together; texts of very different length would need much memory.
_TOKENIZED_TOGETHER = 256
# So many characters for each token that is read are tried first: a text of a megabyte takes a second and a half.
_CHARACTERS = 32
# CUDA compute capability of Volta, the first with fast matrix products in float16; Ampere (8.0) added bfloat16.
_VOLTA = (7, 0)
# The names of sentence-transformers' encode_query and encode_document, then those of published models.
_PROMPT_NAMES: dict[TextKind, tuple[str, ...]] = {
    "query": ("query", "s2p_query", "search_query", "retrieval.query", "web_search_query"),
    "passage": ("document", "passage", "corpus", "search_document", "retrieval.passage"),
}
_TASKS: dict[TextKind, str] = {"query": "query", "passage": "document"}
_OPTIONS: dict[str, Any] = {
    "local_files_only": True,
    "trust_remote_code": False,
    "model_kwargs": {"use_safetensors": True, "dtype": "auto"},
    # A configuration must not choose the code that computes the model: kernels would be fetched from wherever it says.
    "config_kwargs": {"_attn_implementation": None, "_experts_implementation": None},
}


class Encoder:
    """A model of sentence-transformers, whose transformer may be run in parts.

    It is always in evaluation mode: without dropout, equal texts have equal embeddings, which the prefix cache and the
    masks of the loss rely on. Weights are in float32; ``precision`` is that of the base model, in which they are saved.

    Attributes:
        model: All modules.
        transformer: The first of them, as transformers has it.
        head: The others, which make an embedding of the hidden states.
    """

    def __init__(self, model: SentenceTransformer, folder: Path) -> None:
        self.folder, self.precision = folder, model.dtype or torch.float32
        self.model = model.float().eval()
        modules: list[Any] = list(model.children())
        self.transformer: Any = modules[0].auto_model
        self.head = modules[1:]
        self.device = model.device
        self.compute_dtype = compute_dtype(self.device, self.transformer.config.model_type)
        bfloat16_on_cpu = self.device.type == "cpu" and self.compute_dtype == torch.bfloat16
        if bfloat16_on_cpu and self.transformer.config._attn_implementation == "sdpa":
            self.transformer.set_attn_implementation(UNFUSED)
        self.tokenizer: Any = model.tokenizer
        self.max_tokens = self._max_tokens()
        size = int(model.get_embedding_dimension() or self.hidden_size)
        self.dimension = min(size, model.truncate_dim or size)
        self.cosine = model.similarity_fn_name == "cosine"
        # Whether embeddings have length 1.
        self.normalized = isinstance(self.head[-1], Normalize) and model.truncate_dim is None
        self._prompt_tokens: dict[TextKind, int] = {kind: self._excluded(kind) for kind in _TASKS}
        # Whether questions and passages take different ways through the head.
        self.asymmetric = len({*self._prompt_tokens.values()}) > 1 or any(isinstance(m, Router) for m in self.head)

    @classmethod
    def load(cls, folder: Path | str, device: str | None = None) -> "Encoder":
        """Load a model folder of sentence-transformers or transformers; remote code is never run.

        Raises:
            BadModelError: what the folder holds is not whole or not supported; the message names it.
        """
        folder = Path(folder)
        # A progress bar over a model's tensors only clutters a log file.
        disable_progress_bar()  # type: ignore[no-untyped-call]
        try:
            check_folder(folder)
            with _whole_weights_only():
                model = SentenceTransformer(str(folder), device=device or str(default_device()), **_OPTIONS)
            encoder = cls(model, folder)
            encoder._try_out()
        # No fault of the model: torch's is a RuntimeError.
        except (TrainerError, MemoryError, torch.OutOfMemoryError):
            raise
        # The files of a model are untrusted: whatever fails on them, the model is not usable.
        except Exception as error:
            raise BadModelError(f"{folder.name}: {error}") from error
        return encoder

    def _try_out(self) -> None:
        """What does not fit together, such as the widths of two modules, shows only when it is used.

        Raises:
            BadModelError: all texts would have the same embedding.
        """
        for kind in _TASKS:
            if self.added_tokens(kind) >= self.max_tokens:
                name, reads = self.folder.name, self.max_tokens
                raise BadModelError(f"{name}: the prompt of a {kind} leaves none of the {reads} tokens that it reads")
        if not self.encode(["a text"]).any():
            raise BadModelError(f"{self.folder.name}: its embeddings are all zero")

    @property
    def hidden_size(self) -> int:
        """Dimension of the transformer's hidden states."""
        return int(self.transformer.config.hidden_size)

    def prompt_name(self, kind: TextKind) -> str | None:
        """The name of the prompt of such texts, None if they have none."""
        prompts = self.model.prompts
        return next((name for name in _PROMPT_NAMES[kind] if prompts.get(name)), None)

    def prompt(self, kind: TextKind) -> str:
        """The prefix of a text of this kind."""
        name = self.prompt_name(kind)
        return (name and self.model.prompts[name]) or ""

    def description(self) -> list[str]:
        """How the model embeds texts, in sentences for its card."""
        names = {"Questions": self.prompt_name("query"), "Documents": self.prompt_name("passage")}
        precision = str(self.precision).removeprefix("torch.")
        return [
            *(
                f"{texts} have the prompt `{name}`." if name else f"{texts} have no prompt."
                for texts, name in names.items()
            ),
            f"Embeddings are compared by their {'cosine' if self.cosine else 'inner product'}.",
            f"Weights are in {precision}, as the base model's.",
        ]

    def warnings(self) -> list[str]:
        """What the base model leaves to assume, or says of itself wrongly."""
        found = []
        if not (self.folder / MODULES).exists():
            pooling = next(module.pooling_mode for module in self.head if isinstance(module, Pooling))
            found.append(f"base_model has no {MODULES}: {pooling} pooling is assumed, as sentence-transformers does")
        claimed = int(self.model.max_seq_length or 0)
        if self.max_tokens < claimed < UNBOUNDED:
            found.append(
                f"base_model says that it reads {claimed} tokens, it can read {self.max_tokens}: longer texts fail in "
                "serving unless max_seq_length is set"
            )
        return found

    def autocast(self) -> AbstractContextManager[Any]:
        """Mixed precision in ``compute_dtype``; weights and their gradients stay in float32."""
        mixed = self.compute_dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.compute_dtype if mixed else None, enabled=mixed)

    def tokenize(self, texts: Sequence[str], kind: TextKind = "passage", max_tokens: int | None = None) -> Tokens:
        """Token ids of ``texts`` with their prompt, truncated to ``max_tokens`` (default: ``self.max_tokens``)."""
        limit = min(max_tokens or self.max_tokens, self.max_tokens)
        ids, lengths = [np.empty(0, dtype=np.int32)], [np.empty(0, dtype=np.int64)]
        for start in range(0, len(texts), _TOKENIZED_TOGETHER):
            whole = list(texts[start : start + _TOKENIZED_TOGETHER])
            beginnings = [_beginning(text, limit * _CHARACTERS) for text in whole]
            features = self._preprocess(beginnings, kind, max_length=limit)
            mask = features["attention_mask"].numpy().astype(bool)
            cut = np.array([len(beginning) < len(text) for beginning, text in zip(beginnings, whole, strict=True)])
            if (cut & (mask.sum(axis=1) < limit)).any():
                features = self._preprocess(whole, kind, max_length=limit)
                mask = features["attention_mask"].numpy().astype(bool)
            ids.append(features["input_ids"].numpy()[mask])
            lengths.append(mask.sum(axis=1))
        return Tokens.of(np.concatenate(ids), np.concatenate(lengths), query=kind == "query")

    def added_tokens(self, kind: TextKind) -> int:
        """How many of ``max_tokens`` the prompt and special tokens take; as many as these if they leave none."""
        return int(self.tokenize([""], kind).lengths[0])

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of the whole transformer, ``[b, t, d]``, for ``ids`` and ``mask`` ``[b, t]``, padded on the right."""
        states: torch.Tensor = self.transformer(input_ids=ids, attention_mask=mask).last_hidden_state
        return states

    def pool(self, states: torch.Tensor, mask: torch.Tensor, queries: npt.NDArray[np.bool_]) -> torch.Tensor:
        """Embeddings ``[b, d]`` in float32 of hidden states ``[b, t, d]`` and mask ``[b, t]``, padded on the right.

        ``queries`` ``[b]`` tells questions from passages. Embeddings that are compared by their cosine have length 1
        here, so that an inner product ranks them; ``run_head`` gives them as the model does.
        """
        if self.asymmetric:
            embeddings = states.new_empty((len(states), self.dimension), dtype=torch.float32)
            kinds: dict[TextKind, npt.NDArray[np.bool_]] = {"query": queries, "passage": ~queries}
            for kind, chosen in kinds.items():
                rows = torch.from_numpy(np.flatnonzero(chosen)).to(states.device)
                embeddings = embeddings.index_copy(0, rows, self.run_head(states[rows], mask[rows], kind))
        else:
            embeddings = self.run_head(states, mask, "passage")
        return normalize(embeddings, dim=1) if self.cosine and not self.normalized else embeddings

    def run_head(self, states: torch.Tensor, mask: torch.Tensor, kind: TextKind) -> torch.Tensor:
        """The model's embeddings of texts of one kind, as ``pool``."""
        features: dict[str, Any] = {"token_embeddings": states.float(), "attention_mask": mask}
        if length := self._prompt_tokens[kind]:
            features["prompt_length"] = length
        # In float32: these are few operations, and their result is what is searched with.
        with torch.autocast(self.device.type, enabled=False):
            for module in self.head:
                features = module(features, task=_TASKS[kind]) if isinstance(module, Router) else module(features)
        embeddings: torch.Tensor = features["sentence_embedding"]
        return embeddings if self.model.truncate_dim is None else embeddings[:, : self.dimension]

    def round_weights(self) -> None:
        """Round the weights to the base model's precision, so that what is measured is what will be served."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter.copy_(parameter.to(self.precision))

    def save_weights(self, folder: Path) -> None:
        """Write every module's weights in the base model's precision, in safetensors, where its folder has them.

        The modules write configuration files too, of their own version.
        """
        self.model.to(self.precision)
        # Not the module's own method, which writes a tokenizer again: that may split texts differently.
        self.transformer.save_pretrained(folder / module_folders(self.folder)[0])
        for module, path in self._head_folders():
            if any(True for _ in module.parameters()):
                (folder / path).mkdir(parents=True, exist_ok=True)
                module.save(str(folder / path))
        self.model.float()

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
                states = self.hidden_states(ids, mask)
                embeddings[rows] = self.pool(states, mask, tokens.queries[rows]).cpu().numpy()
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

    def _head_folders(self) -> Iterator[tuple[Any, str]]:
        """The modules behind the transformer, those inside a Router too, with their folders."""
        for module, path in zip(self.head, module_folders(self.folder)[1:], strict=False):
            if not isinstance(module, Router):
                yield module, path
                continue
            routes: Any = module.sub_modules
            for route, names in router_structure(self.folder / path).items():
                yield from zip(routes[route], (f"{path}/{name}" for name in names), strict=True)

    def _preprocess(self, texts: list[str], kind: TextKind, **options: Any) -> dict[str, Any]:
        return self.model.preprocess(texts, prompt=self.prompt(kind), task=_TASKS[kind], **options)

    def _excluded(self, kind: TextKind) -> int:
        """Number of tokens that the Pooling leaves out: those of the prompt, if ``include_prompt`` is false."""
        if all(module.include_prompt for module in self.head if isinstance(module, Pooling)):
            return 0
        return int(self._preprocess([""], kind).get("prompt_length") or 0)

    def _max_tokens(self) -> int:
        """Maximum sequence length, special tokens included; longer texts are truncated."""
        # Tokenizers without a maximum report 10^30. RoBERTa's positions start after the padding id, which costs some.
        positions = int(getattr(self.transformer.config, "max_position_embeddings", DEFAULT_MAX_TOKENS))
        embeddings = getattr(self.transformer, "embeddings", None)
        padding_id = getattr(getattr(embeddings, "position_embeddings", None), "padding_idx", None)
        if padding_id is not None:
            positions -= padding_id + 1
        return min(int(self.model.max_seq_length or DEFAULT_MAX_TOKENS), positions)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch, padding included, that suit the device."""
        return BATCH_TOKENS_CUDA if self.device.type == "cuda" else BATCH_TOKENS


def _beginning(text: str, characters: int) -> str:
    """At most so many ``characters`` of a text, up to a space, which no tokenizer has a token across; without, all."""
    if len(text) <= characters:
        return text
    space = text.rfind(" ", 0, characters)
    return text if space < 0 else text[:space]


@contextmanager
def _whole_weights_only() -> Iterator[None]:
    """Inside, transformers refuses weights that do not fit, in whose place it would take random ones with a warning."""
    class_: Any = PreTrainedModel
    original = class_.__dict__["from_pretrained"]

    def load_whole(cls: type[PreTrainedModel], *args: Any, **options: Any) -> Any:
        model, report = original.__func__(cls, *args, output_loading_info=True, **options)
        # Heads for other tasks are left out, and a pooler's output is not used.
        missing = [name for name in report["missing_keys"] if "pooler" not in name.split(".")]
        own = {name for name, _ in model.named_children()} - {"pooler"}
        prefix = f"{model.base_model_prefix}."
        unexpected = [name for name in report["unexpected_keys"] if name.removeprefix(prefix).split(".")[0] in own]
        if missing or unexpected:
            raise BadModelError(
                f"the weights do not fit config.json: {len(missing)} of {len(model.state_dict())} are missing, "
                f"{len(report['unexpected_keys'])} unexpected (such as {min(missing or unexpected)})"
            )
        return model

    class_.from_pretrained = classmethod(load_whole)
    try:
        yield
    finally:
        class_.from_pretrained = original


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
