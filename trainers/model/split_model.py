"""Splits a transformer into the layers that stay as they are and those that train.

Both halves are the library's own model with parts left out, and share its weights: masks, positions and rotations are
computed by the same code as in the whole.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainers.errors import KnobError


@dataclass(frozen=True)
class Layout:
    """Where a family of models keeps its parts, as dotted names, and what is known of its states."""

    layers: str
    # Left out of the trained half, which is handed states for embeddings; None where such states pass untouched.
    embeddings: str | None = None
    # What follows the last layer, and so is no part of the frozen half.
    final_norm: str | None = None
    # Whether states stay within float16's range. Decoders' first tokens leave it, and of ModernBERT it is not known.
    float16: bool = False


_ENCODER = Layout(layers="encoder.layer", embeddings="embeddings", float16=True)
LAYOUTS: dict[str, Layout] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "mpnet": _ENCODER,
    "modernbert": Layout(layers="layers", embeddings="embeddings", final_norm="final_norm"),
    "qwen3": Layout(layers="layers", final_norm="norm"),
}


@dataclass(frozen=True)
class SplitModel:
    """``prefix(input_ids, attention_mask)`` makes the states that ``trained(inputs_embeds, attention_mask)`` takes."""

    prefix: nn.Module
    trained: nn.Module


class _Untouched(nn.Module):
    """Stands where embeddings were: the states come from the prefix."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> torch.Tensor:
        return inputs_embeds


def freeze(model: Any, trainable_layers: int | str) -> None:
    """Let the last ``trainable_layers`` layers and what follows them train, or everything with ``"all"``.

    Raises:
        KnobError: there are fewer layers, or the model is of a family whose layers are not known here.
    """
    model.requires_grad_(trainable_layers == "all")
    if getattr(model, "pooler", None) is not None:
        # A head for another task: its output is not used, so there is nothing that it could learn.
        model.pooler.requires_grad_(False)
    if isinstance(trainable_layers, str):
        return
    layout = LAYOUTS.get(model.config.model_type)
    layers = model.get_submodule(layout.layers) if layout else _longest_list(model)
    if trainable_layers > len(layers):
        raise KnobError(f"training.trainable_layers is {trainable_layers}, base_model has {len(layers)} layers")
    layers[len(layers) - trainable_layers :].requires_grad_(True)
    if layout and layout.final_norm:
        model.get_submodule(layout.final_norm).requires_grad_(True)


def halves(model: Any, trainable_layers: int | str) -> SplitModel | None:
    """The frozen and the trained half, or None where nothing is frozen or the family's layout is not known."""
    layout = LAYOUTS.get(model.config.model_type)
    if layout is None or isinstance(trainable_layers, str) or _layers_differ(model):
        return None
    layers = model.get_submodule(layout.layers)
    cut = len(layers) - trainable_layers
    prefix: dict[str, nn.Module | None] = {layout.layers: layers[:cut]}
    trained: dict[str, nn.Module | None] = {layout.layers: layers[cut:]}
    if layout.final_norm:
        prefix[layout.final_norm] = nn.Identity()
    if layout.embeddings:
        trained[layout.embeddings] = _Untouched()
    if hasattr(model, "pooler"):
        # A head for another task: its output is not used.
        prefix["pooler"] = trained["pooler"] = None
    return SplitModel(view(model, prefix), view(model, trained))


def view(model: nn.Module, replaced: dict[str, nn.Module | None]) -> nn.Module:
    """The model with some of its parts replaced, by dotted name; all other parts are shared with the original."""
    clone = copy.copy(model)
    clone._modules = dict(model._modules)
    for name, part in replaced.items():
        first, _, rest = name.partition(".")
        clone._modules[first] = view(model.get_submodule(first), {rest: part}) if rest else part
    return clone


def _layers_differ(model: Any) -> bool:
    # Qwen3 chooses a layer's mask by its index, which changes when layers are cut away in front of it.
    kinds = set(getattr(model.config, "layer_types", None) or ())
    return model.config.model_type == "qwen3" and kinds != {"full_attention"}


def _longest_list(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise KnobError(f"training.trainable_layers: no layers found in {type(model).__name__}; only 'all' is possible")
    return max(lists, key=len)
