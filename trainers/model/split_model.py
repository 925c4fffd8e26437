"""Splits a transformer into its frozen layers and its trained ones.

Both parts are the library's own model with modules replaced, and share its weights: masks, positions and rotary
embeddings are computed by the same code as in the whole model.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from trainers.errors import KnobError


@dataclass(frozen=True)
class Layout:
    """The module names of a model family, dotted, and whether it can compute in float16."""

    layers: str
    # Replaced in the trained part, whose input are hidden states; None where the family passes inputs_embeds through.
    embeddings: str | None = None
    # Follows the last layer, so it is left out of the frozen part.
    final_norm: str | None = None
    # Hidden states stay within float16's range. Those of decoders' first tokens overflow; ModernBERT was not tested.
    float16: bool = False


_ENCODER = Layout(layers="encoder.layer", embeddings="embeddings", float16=True)
_DECODER = Layout(layers="layers", final_norm="norm")
LAYOUTS: dict[str, Layout] = {
    "bert": _ENCODER,
    "roberta": _ENCODER,
    "xlm-roberta": _ENCODER,
    "camembert": _ENCODER,
    "mpnet": _ENCODER,
    "modernbert": Layout(layers="layers", embeddings="embeddings", final_norm="final_norm"),
    "nomic_bert": Layout(layers="layers", embeddings="embeddings"),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "gemma3_text": _DECODER,
}


@dataclass(frozen=True)
class SplitModel:
    """``prefix(input_ids, attention_mask)`` computes the hidden states that are the ``inputs_embeds`` of
    ``trained(inputs_embeds, attention_mask)``.
    """

    prefix: nn.Module
    trained: nn.Module


class _PassThroughEmbeddings(nn.Module):
    """Replaces the embeddings in the trained part: its input are the prefix's hidden states already."""

    def forward(self, *_: Any, inputs_embeds: torch.Tensor, **__: Any) -> torch.Tensor:
        return inputs_embeds


def freeze(model: Any, trainable_layers: int | str) -> None:
    """Freeze all but the last ``trainable_layers`` layers and what follows them; nothing with ``"all"``.

    Raises:
        KnobError: the model has fewer layers, or they were not found in a model of an unknown family.
    """
    model.requires_grad_(trainable_layers == "all")
    if getattr(model, "pooler", None) is not None:
        # A head for another task: its output is not used, so it has no gradient.
        model.pooler.requires_grad_(False)
    if isinstance(trainable_layers, str):
        return
    layout = LAYOUTS.get(model.config.model_type)
    layers = model.get_submodule(layout.layers) if layout else _longest_module_list(model)
    if trainable_layers > len(layers):
        raise KnobError(f"training.trainable_layers is {trainable_layers}, base_model has {len(layers)} layers")
    layers[len(layers) - trainable_layers :].requires_grad_(True)
    if layout and layout.final_norm:
        model.get_submodule(layout.final_norm).requires_grad_(True)


def split_model(model: Any, trainable_layers: int | str) -> SplitModel | None:
    """The frozen and the trained part; None if nothing is frozen or the model's layout is unknown."""
    layout = LAYOUTS.get(model.config.model_type)
    if layout is None or isinstance(trainable_layers, str):
        return None
    layers = model.get_submodule(layout.layers)
    cut = len(layers) - trainable_layers
    prefix: dict[str, nn.Module | None] = {layout.layers: layers[:cut]}
    trained: dict[str, nn.Module | None] = {layout.layers: layers[cut:]}
    if layout.final_norm:
        prefix[layout.final_norm] = nn.Identity()
    if layout.embeddings:
        trained[layout.embeddings] = _PassThroughEmbeddings()
    if hasattr(model, "pooler"):
        # A head for another task: its output is not used.
        prefix["pooler"] = trained["pooler"] = None
    parts = _with_replaced(model, prefix), _with_replaced(model, trained)
    for part, kept in zip(parts, (slice(cut), slice(cut, None)), strict=True):
        # Decoders choose a layer's mask by its index, which changes when the layers before it are removed.
        part.config = copy.copy(model.config)
        part.config.num_hidden_layers, part.config.use_cache = len(layers[kept]), False
        if getattr(model.config, "layer_types", None):
            part.config.layer_types = model.config.layer_types[kept]
    return SplitModel(*parts)


def _with_replaced(model: nn.Module, replacements: dict[str, nn.Module | None]) -> Any:
    """A shallow copy with some modules replaced, by dotted name; all others are shared with the original."""
    clone = copy.copy(model)
    clone._modules = dict(model._modules)
    for name, module in replacements.items():
        first, _, rest = name.partition(".")
        clone._modules[first] = _with_replaced(model.get_submodule(first), {rest: module}) if rest else module
    return clone


def _longest_module_list(model: nn.Module) -> nn.ModuleList:
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not lists:
        raise KnobError(f"training.trainable_layers: no layers found in {type(model).__name__}; only 'all' is possible")
    return max(lists, key=len)
