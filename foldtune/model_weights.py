"""Whether a base model's weights are whole and fit its configuration, by the headers of their files.

A safetensors file begins with the length of a JSON object (eight bytes), then that object: of each tensor its shape and
where its bytes lie. So a few kilobytes tell what gigabytes are. The trainer compares every name with the model's class.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeInt, TypeAdapter

from foldtune.errors import ModelFolderError
from foldtune.model_folder import WEIGHTS, Read, module_folders

# The first bytes of a file, at most so many, and its size.
ReadStart = Callable[[str, int], tuple[bytes, int]]

LFS_POINTER = b"version https://git-lfs"
INDEX = "model.safetensors.index.json"
_LENGTH = 8
# Most headers are shorter; longer ones are read in a second request. Of models with 100 layers they have a megabyte.
_FIRST_READ = 1 << 16
_MAX_HEADER = 16 << 20
_SHARD = re.compile(r"model.*\.safetensors")
# Names of what was around the model: sentence-transformers' list, torch's parallel and compiled modules.
_WRAPPED = re.compile(r"(\d+|auto_model|module|_orig_mod)\.")
_LAYER = re.compile(r"(|.*?\.)(?:layers?|h)\.(\d{1,6})\.")
_WORDS = re.compile(r"(.*\.)?(word_embeddings|embed_tokens|tok_embeddings)\.weight")
# The names of a number in the configurations of different families.
_LAYERS = ("num_hidden_layers", "n_layers", "n_layer")
_WIDTH = ("hidden_size", "dim", "n_embd")
# Of safetensors. Narrower formats come with scales, without which their numbers mean nothing.
_FLOATS = {"F64", "F32", "F16", "BF16"}


class _Tensor(BaseModel):
    model_config = ConfigDict(extra="ignore")

    dtype: str
    shape: tuple[NonNegativeInt, ...]
    data_offsets: tuple[NonNegativeInt, NonNegativeInt]


class _Header(NamedTuple):
    size: int
    tensors: dict[str, _Tensor]


_TENSORS = TypeAdapter(dict[str, _Tensor])


def check_weights(names: Collection[str], read: Read, read_start: ReadStart) -> None:
    """Refuse weights that are not whole or do not fit; of a folder that ``check_model_folder`` accepts.

    Raises:
        ModelFolderError: one sentence that names the file and what is wrong.
    """
    folders = [PurePosixPath(folder) for folder in module_folders(names, read)]
    paths = {name: PurePosixPath(name) for name in names}
    weights = sorted(name for name, path in paths.items() if _SHARD.fullmatch(path.name))
    own = [name for name in weights if paths[name].parent == folders[0]]
    behind = [name for name in weights if any(paths[name].is_relative_to(folder) for folder in folders[1:])]
    tensors = {name: _tensors(name, read_start) for name in dict.fromkeys([*own, *behind])}
    # transformers prefers the file to its parts.
    whole = str(folders[0] / WEIGHTS)
    used = [whole] if whole in own else _shards(folders[0], own, read)
    found = [tensors[name] for name in used]
    config = json.loads(read(str(folders[0] / "config.json")))
    if None not in found:
        _check_fit({name: tensor for part in found if part for name, tensor in part.items()}, config)


def _shards(folder: PurePosixPath, present: list[str], read: Read) -> list[str]:
    path = str(folder / INDEX)
    try:
        named = sorted({str(folder / str(name)) for name in json.loads(read(path))["weight_map"].values()})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ModelFolderError(f"{path} is missing or names no files") from error
    if missing := sorted(set(named) - set(present)):
        raise ModelFolderError(f"{missing[0]} is missing, which {path} names ({len(missing)} of {len(named)} files)")
    return named


def _tensors(name: str, read_start: ReadStart) -> dict[str, _Tensor] | None:
    """The tensors of a file that is as long as its header says; None if the header is too long to be read here."""
    content, size = read_start(name, _FIRST_READ)
    if content.startswith(LFS_POINTER):
        raise ModelFolderError(f"{name} is a pointer of Git LFS, the weights were not fetched")
    length = int.from_bytes(content[:_LENGTH], "little")
    if size < _LENGTH or _LENGTH + length > size:
        raise ModelFolderError(f"{name} is not whole: {size} bytes, less than its header")
    if length > _MAX_HEADER:
        return None
    if len(content) < _LENGTH + length:
        content, size = read_start(name, _LENGTH + length)
    try:
        header: dict[str, Any] = json.loads(content[_LENGTH : _LENGTH + length])
        tensors = _TENSORS.validate_python({key: value for key, value in header.items() if key != "__metadata__"})
    except (ValueError, AttributeError, RecursionError) as error:
        raise ModelFolderError(f"{name} is not in safetensors: its header cannot be read") from error
    expected = _LENGTH + length + max((tensor.data_offsets[1] for tensor in tensors.values()), default=0)
    if size != expected:
        raise ModelFolderError(f"{name} is not whole: {size} of {expected} bytes")
    return tensors


def _check_fit(tensors: dict[str, _Tensor], config: dict[str, Any]) -> None:
    """What holds for every family; where a configuration or the names are of another kind, nothing is said."""
    problem = "the weights do not fit config.json"
    if wrapped := sorted(filter(_WRAPPED.match, tensors)):
        raise ModelFolderError(
            f"{problem}: {len(wrapped)} of {len(tensors)} have the names of another program (such as {wrapped[0]})"
        )
    matrices = {name: tensor for name, tensor in tensors.items() if name.endswith("weight") and len(tensor.shape) > 1}
    if quantized := sorted(name for name, tensor in matrices.items() if tensor.dtype not in _FLOATS):
        raise ModelFolderError(
            f"quantized weights cannot be trained: {len(quantized)} of {len(matrices)} matrices "
            f"(such as {quantized[0]}, {matrices[quantized[0]].dtype[:16]})"
        )
    stacks: defaultdict[str, set[int]] = defaultdict(set)
    for name in tensors:
        if layer := _LAYER.match(name):
            stacks[layer[1]].add(int(layer[2]))
    layers = _number(config, _LAYERS)
    # Of encoder and decoder, or towers for text and images, a configuration has several numbers.
    if layers and len(stacks) == 1:
        (found,) = stacks.values()
        known = sum(layer < layers for layer in found)
        if known < layers or len(found) > known:
            raise ModelFolderError(
                f"{problem}: it has {layers} layers, of which {layers - known} have no weights, "
                f"and there are weights of {len(found) - known} others"
            )
    words, width = config.get("vocab_size"), _number(config, _WIDTH)
    for name, tensor in tensors.items():
        if not (_WORDS.fullmatch(name) and words and width):
            continue
        # Some families have narrower word embeddings; a configuration names that width too.
        if len(tensor.shape) != 2 or tensor.shape[0] != words or tensor.shape[1] not in config.values():
            shape = " x ".join(map(str, tensor.shape))
            raise ModelFolderError(f"{problem}: {name} has the shape {shape}, not {words} x {width}")


def _number(config: dict[str, Any], names: tuple[str, ...]) -> int | None:
    return next((config[name] for name in names if isinstance(config.get(name), int)), None)
