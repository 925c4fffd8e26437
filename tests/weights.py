"""Files in safetensors, of zeros, without torch."""

import json
import math


def safetensors(shapes: dict[str, tuple[int, ...]], dtype: str = "F16") -> bytes:
    """Tensors of zeros; of a ``dtype`` of one byte or two."""
    header, end, size = {}, 0, 2 if dtype.endswith("16") else 1
    for name, shape in shapes.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (end, end := end + size * math.prod(shape))}
    described = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    return len(described).to_bytes(8, "little") + described + bytes(end)


def bert(layers: int = 3, width: int = 4, prefix: str = "") -> dict[str, tuple[int, ...]]:
    """A few of the names and shapes of BERT's weights, with ten words."""
    shapes = {f"{prefix}embeddings.word_embeddings.weight": (10, width), f"{prefix}pooler.dense.bias": (width,)}
    return shapes | {f"{prefix}encoder.layer.{layer}.output.dense.bias": (width,) for layer in range(layers)}
