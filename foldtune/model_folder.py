"""Whether a base model's folder can be trained, as far as its small files tell, before anything is loaded.

Reads names and configuration files only, so it needs neither torch nor the weights: launchers check with it before a
machine is paid for, and the trainer before it loads. What it accepts is loaded by sentence-transformers' own modules.
"""

import json
import re
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any

from foldtune.errors import ModelFolderError

# The files of a repository that are read and published with a model; never pickled weights nor code.
CONFIG_PATTERNS = ("*.json", "*.txt", "*.model", "*.codes", "*.vocab", "*.tiktoken", "*.jinja")
WEIGHTS = "model.safetensors"
MODULES = "modules.json"
# sentence-transformers reads the first that exists.
TRANSFORMER_CONFIGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
ADAPTER = "adapter_config.json"
_MODEL_CONFIG = "config_sentence_transformers.json"
_POOLING = "Pooling"
# What a text passes behind the transformer. "Router" chooses among others by the kind of text.
_HEAD = frozenset({_POOLING, "Dense", "Normalize", "LayerNorm", "Dropout", "Router"})
_HAS_CONFIG = frozenset({_POOLING, "Dense", "LayerNorm"})
_HAS_WEIGHTS = frozenset({"Dense", "LayerNorm"})
# Arguments of the transformer's module that would load other files, or other code, than those of the folder.
_ARGUMENTS = ("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs", "config_args", "config_kwargs")
# Families whose published configuration still points to code that transformers has taken over. Whether the weights fit
# the library's class is checked when they are loaded.
_PORTED = frozenset({"nomic_bert", "eurobert", "jina_embeddings_v3"})
_WEIGHTS = re.compile(r"model.*\.safetensors")
_VOCABULARY = re.compile(r"tokenizer\.json|vocab\.(txt|json)|[\w.-]+\.model|bpe\.codes|[\w.-]+\.tiktoken")
# sentence-transformers 5.0 and older wrote the second.
ROUTER_CONFIGS = ("router_config.json", "config.json")
_SIMILARITIES = ("cosine", "dot")
# Special tokens alone take two or three: texts cut there would all be one.
_MIN_TOKENS = 4

Read = Callable[[str], bytes]


def check_model_folder(names: Collection[str], read: Read) -> None:
    """Refuse a model that cannot be trained rightly; ``names`` are its files, with ``/``, and ``read`` reads one.

    Raises:
        ModelFolderError: one sentence that names the file and what is missing or not supported.
    """
    modules = _modules(names, read)
    transformer = modules[0][1]
    if adapter := next((name for name in (ADAPTER, _join(transformer, ADAPTER)) if name in names), None):
        raise ModelFolderError(f"{adapter}: adapters are not supported, merge it into its base model")
    _check_transformer(transformer, names, read)
    for kind, folder in modules[1:]:
        _check_head(kind, folder, names, read)
    _check_encoding(_config(_MODEL_CONFIG, names, read))


def module_folders(names: Collection[str], read: Read) -> tuple[str, ...]:
    """The folders of all modules, in order; "" is the model's own."""
    return tuple(folder for _, folder in _modules(names, read))


def _modules(names: Collection[str], read: Read) -> list[tuple[str, str]]:
    """The modules' classes and folders; a folder without ``modules.json`` is a transformer alone."""
    if MODULES not in names:
        return [("Transformer", "")]
    listed = _json(MODULES, read)
    if not isinstance(listed, list) or not all(isinstance(module, dict) for module in listed):
        raise ModelFolderError(f"{MODULES}: not a list of modules")
    modules = [(_class(module.get("type"), MODULES), _folder(module.get("path"), MODULES)) for module in listed]
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"]:
        raise ModelFolderError(f"{MODULES}: the first module must be a Transformer, found {kinds}")
    labels = [module["name"] for module in listed if "name" in module]
    # sentence-transformers would replace the first of two by the second.
    if twice := next((label for label in labels if labels.count(label) > 1), None):
        raise ModelFolderError(f"{MODULES}: two modules have the name {twice!r}")
    if unknown := sorted(set(kinds[1:]) - _HEAD):
        raise ModelFolderError(f"{MODULES}: {', '.join(unknown)} behind the Transformer is not supported")
    if kinds.count(_POOLING) != 1:
        raise ModelFolderError(f"{MODULES}: one Pooling is needed, found {kinds.count(_POOLING)}")
    return modules


def _check_transformer(folder: str, names: Collection[str], read: Read) -> None:
    if not any(_in(name, folder) and _WEIGHTS.fullmatch(PurePosixPath(name).name) for name in names):
        raise ModelFolderError(f"{_join(folder, WEIGHTS)} is missing; pickled weights are not loaded")
    path = _join(folder, "config.json")
    if path not in names:
        raise ModelFolderError(f"{path} is missing")
    config = _config(path, names, read)
    if config.get("quantization_config") is not None:
        raise ModelFolderError(f"quantization_config of {path} is not supported")
    # Others than those whose digest is checked.
    if (weights := config.get("transformers_weights")) is not None:
        raise ModelFolderError(f"transformers_weights {weights!r} of {path} is not supported, only {WEIGHTS}")
    code = config.get("auto_map")
    if code and {"AutoModel", "AutoConfig"} & set(code) and config.get("model_type") not in _PORTED:
        raise ModelFolderError(f"auto_map of {path}: the model needs code of its own, which is never run")
    if not any(_in(name, folder) and _VOCABULARY.fullmatch(PurePosixPath(name).name) for name in names):
        raise ModelFolderError(
            "the tokenizer has no vocabulary: none of tokenizer.json, vocab.txt, *.model and the like"
        )
    path = next((name for name in (_join(folder, name) for name in TRANSFORMER_CONFIGS) if name in names), "")
    config = _config(path, names, read) if path else {}
    for argument in (*_ARGUMENTS, "tokenizer_name_or_path", "query_expansion"):
        if config.get(argument):
            raise ModelFolderError(f"{argument} of {path} is not supported")
    tokens = config.get("max_seq_length")
    # 10^30, as a float, stands for none; other fractions fail in serving.
    if tokens is not None and not ((isinstance(tokens, int) and tokens >= _MIN_TOKENS) or tokens == 1e30):
        raise ModelFolderError(f"max_seq_length {tokens!r} of {path} is not a number of tokens from {_MIN_TOKENS} on")
    if config.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise ModelFolderError(f"transformer_task {config['transformer_task']!r} of {path} is not supported")
    # The name that Pooling reads; other outputs are those of models of images or of heads for other tasks.
    if config.get("module_output_name", "token_embeddings") != "token_embeddings":
        raise ModelFolderError(f"module_output_name {config['module_output_name']!r} of {path} is not supported")


def _check_head(kind: str, folder: str, names: Collection[str], read: Read) -> None:
    if kind == "Router":
        path = next((path for path in (_join(folder, name) for name in ROUTER_CONFIGS) if path in names), "")
        types = _config(path, names, read).get("types") if path else None
        if not isinstance(types, dict):
            raise ModelFolderError(f"{_join(folder, 'router_config.json')} is missing or has no types")
        for name, reference in types.items():
            inner = _class(reference, path)
            if inner not in _HEAD - {_POOLING, "Router"}:
                raise ModelFolderError(f"{path}: {inner} inside a Router is not supported")
            _check_head(inner, _join(folder, _folder(name, path)), names, read)
        return
    path = _join(folder, "config.json")
    if kind in _HAS_CONFIG and path not in names:
        raise ModelFolderError(f"{path} of module {kind} is missing")
    if kind in _HAS_WEIGHTS and _join(folder, WEIGHTS) not in names:
        raise ModelFolderError(f"{_join(folder, WEIGHTS)} is missing; pickled weights are not loaded")
    activation = _config(path, names, read).get("activation_function") if kind == "Dense" else None
    # sentence-transformers would take another in its place.
    if activation is not None and not str(activation).startswith("torch."):
        raise ModelFolderError(f"activation_function {activation!r} of {path} is not one of torch's")


def _check_encoding(config: dict[str, Any]) -> None:
    """The configuration of the whole model."""
    if (kind := config.get("model_type", "SentenceTransformer")) != "SentenceTransformer":
        raise ModelFolderError(f"{_MODEL_CONFIG}: a {kind} is no bi-encoder")
    prompts = config.get("prompts", {})
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str | None) for prompt in prompts.values()):
        raise ModelFolderError(f"prompts of {_MODEL_CONFIG} must be texts by name")
    if (similarity := config.get("similarity_fn_name") or "cosine") not in _SIMILARITIES:
        raise ModelFolderError(
            f"similarity_fn_name {similarity!r} of {_MODEL_CONFIG}: only {' and '.join(_SIMILARITIES)}"
        )
    size = config.get("truncate_dim")
    if size is not None and not (isinstance(size, int) and not isinstance(size, bool) and size > 0):
        raise ModelFolderError(f"truncate_dim {size!r} of {_MODEL_CONFIG} is not a number of dimensions")


def _class(reference: Any, path: str) -> str:
    package, _, name = str(reference).rpartition(".")
    # Anything else is code of the model.
    if not package.startswith("sentence_transformers."):
        raise ModelFolderError(f"{path}: {str(reference)!r} is code of its own, which is never run")
    return name


def _folder(path: Any, source: str) -> str:
    found = PurePosixPath(str(path or ""))
    if found.is_absolute() or ".." in found.parts:
        raise ModelFolderError(f"{source}: {str(path)!r} leads out of the model's folder")
    return "" if found == PurePosixPath() else str(found)


def _config(path: str, names: Collection[str], read: Read) -> dict[str, Any]:
    found = _json(path, read) if path in names else {}
    if not isinstance(found, dict):
        raise ModelFolderError(f"{path} is not a JSON object")
    return found


def _json(path: str, read: Read) -> Any:
    try:
        return json.loads(read(path))
    except (ValueError, RecursionError) as error:
        raise ModelFolderError(f"{path} is not JSON: {error}") from error


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _in(name: str, folder: str) -> bool:
    return str(PurePosixPath(name).parent) == (folder or ".")
