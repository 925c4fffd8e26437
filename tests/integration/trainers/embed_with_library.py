"""Embeds texts with the sentence-transformers of the environment that runs this; it imports nothing of ours.

Reads a JSON file (``texts``; ``models``: folders by name), and writes the embeddings of each model in each way to a
NumPy file beside it, and the library's versions to its output.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import sentence_transformers
import transformers
from sentence_transformers import SentenceTransformer


def embeddings(model: Any, texts: list[str]) -> dict[str, Any]:
    """Of each way to embed the texts; those by their kind only where the library has them."""
    found = {name: model.encode(texts, prompt_name=name) for name in model.prompts} | {"": model.encode(texts)}
    for kind in ("query", "document"):
        if encode := getattr(model, f"encode_{kind}", None):
            found[f"as {kind}"] = encode(texts)
    return found


def main(job: Path) -> None:
    """Embed all texts with all models."""
    content = json.loads(job.read_text())
    found = {}
    for name, folder in content["models"].items():
        for way, vectors in embeddings(SentenceTransformer(folder, device="cpu"), content["texts"]).items():
            found[f"{name}/{way}"] = vectors
    np.savez(job.with_suffix(".npz"), **found)
    sys.stdout.write(json.dumps([sentence_transformers.__version__, transformers.__version__]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
