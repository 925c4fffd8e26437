"""LlamaIndex's linear adapter: a matrix on the questions' embeddings, trained by its own engine.

Writes ``query_maps.npy`` ``[rates, d, d]``.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.finetuning import EmbeddingAdapterFinetuneEngine, EmbeddingQAFinetuneDataset
from sentence_transformers import SentenceTransformer

EPOCHS = 3
BATCH_SIZE = 32


class EmbeddedBefore(BaseEmbedding):  # type: ignore[misc]
    """Embeddings computed in batches beforehand; its loader asks for one text at a time, and in each epoch again."""

    vectors: dict[str, list[float]]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self.vectors[text]

    def _get_query_embedding(self, query: str) -> list[float]:
        return self.vectors[query]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self.vectors[query]


def clock() -> Any:
    """Elapsed and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def main(job: dict[str, Any]) -> None:
    """Train a matrix with each learning rate."""
    began = clock()
    output, pairs = Path(job["output"]), [(job["questions"][q], job["passages"][p]) for q, p in job["pairs"]]
    model = SentenceTransformer(job["base"], device="cpu")
    texts = sorted({text for pair in pairs for text in pair})
    vectors = dict(zip(texts, model.encode(texts, normalize_embeddings=True).tolist(), strict=True))
    embedding_seconds = clock() - began
    # Its loader takes one document a question: a question with several of them comes once with each.
    dataset = EmbeddingQAFinetuneDataset(
        queries={str(row): question for row, (question, _) in enumerate(pairs)},
        corpus={str(row): passage for row, (_, passage) in enumerate(pairs)},
        relevant_docs={str(row): [str(row)] for row in range(len(pairs))},
    )
    maps, seconds = [], []
    for index, rate in enumerate(job["rates"]):
        began = clock()
        torch.manual_seed(job["seed"])
        engine = EmbeddingAdapterFinetuneEngine(
            dataset,
            EmbeddedBefore(vectors=vectors),
            batch_size=BATCH_SIZE,
            epochs=EPOCHS,
            dim=len(next(iter(vectors.values()))),
            device="cpu",
            model_output_path=str(output / f"adapter-{index}"),
            optimizer_params={"lr": rate},
            show_progress_bar=False,
        )
        engine.finetune()
        maps.append(engine.model.linear.weight.detach().numpy())
        seconds.append((embedding_seconds + clock() - began).tolist())
    np.save(output / "query_maps.npy", np.stack(maps))
    (output / "seconds.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
