"""Exports a trained model to ONNX: token ids and attention mask to pooled embeddings, in float32."""

import warnings
from pathlib import Path

import numpy as np
import torch

from trainers.errors import OnnxExportError, TrainerError
from trainers.model.encoder import Encoder

FILE = "model.onnx"
INPUTS = ("input_ids", "attention_mask")
OUTPUT = "sentence_embedding"

TOLERANCE = 1e-4
_TEXTS = ("", "A question?", "A passage that is a little longer than the others. " * 3)
# Protocol buffers are limited to 2 GB; the weights of larger models go to a separate file.
_MAX_BYTES = 2_000_000_000


class _Embedding(torch.nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.model = encoder.model
        # Not registered as a module a second time.
        self._encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        states = self._encoder.hidden_states(input_ids, attention_mask)
        return self._encoder.run_head(states, attention_mask, "passage")


def export_onnx(folder: Path) -> None:
    """Write ``model.onnx`` into the model folder ``folder``, for any batch and any length up to the model's bound.

    Inputs ``input_ids`` and ``attention_mask`` ``[b, t]`` int64, padded on the right; the caller prepends the prompts.
    Output ``sentence_embedding`` ``[b, d]`` float32.

    Raises:
        OnnxExportError: packages are missing, the exporter does not support the model, or ONNX Runtime's embeddings
            differ from torch's; there is then no ``model.onnx``.
    """
    try:
        difference = _export(folder)
    except ImportError as error:
        raise OnnxExportError(f"the extra 'onnx' is not installed ({error})") from error
    except TrainerError:
        raise
    # ONNX Runtime's errors have no common class; whatever fails, the model itself is published.
    except Exception as error:
        _remove(folder)
        raise OnnxExportError(str(error)) from error
    if not difference <= TOLERANCE:
        _remove(folder)
        raise OnnxExportError(f"its embeddings differ by {difference:.1e} from torch's, the tolerance is {TOLERANCE}")


def _export(folder: Path) -> float:
    """Write the file; the largest difference between an embedding of ONNX Runtime and of torch."""
    import onnxruntime  # noqa: PLC0415 - an optional extra

    encoder = Encoder.load(folder, "cpu")
    if encoder.asymmetric:
        raise OnnxExportError("questions and passages take different ways through the model")
    module = _Embedding(encoder).eval()
    tokens = encoder.tokenize(_TEXTS)
    inputs = tokens.padded(np.arange(len(tokens)), encoder.device)
    size = sum(parameter.nbytes for parameter in module.parameters())
    # The exporter's warnings are about its internals; its result is checked below.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            inputs,
            folder / FILE,
            input_names=INPUTS,
            output_names=(OUTPUT,),
            dynamic_shapes={name: {0: "batch", 1: "length"} for name in INPUTS},
            external_data=size > _MAX_BYTES,
            verbose=False,
        )
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])
    difference = 0.0
    # In one batch, and each alone: batch sizes and lengths other than those of the export.
    for rows in (np.arange(len(tokens)), *np.arange(len(tokens))[:, None]):
        ids, mask = tokens.padded(rows, encoder.device)
        (exported,) = session.run([OUTPUT], dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
        with torch.no_grad():
            difference = max(difference, float((module(ids, mask) - torch.from_numpy(exported)).abs().max()))
    return difference


def _remove(folder: Path) -> None:
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
