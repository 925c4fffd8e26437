"""adaptmem, a small wrapper that mines one negative a pair and trains one epoch; its defaults.

Writes a sentence-transformers folder, ``model``.
"""

import json
import random
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from adaptmem import AdaptMem
from sentence_transformers import SentenceTransformer


def clock() -> Any:
    """Elapsed and CPU seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def main(job: dict[str, Any]) -> None:
    """Train with its defaults."""
    torch.manual_seed(job["seed"])
    random.seed(job["seed"])
    relevant = defaultdict(list)
    for question, passage in job["pairs"]:
        relevant[question].append(str(passage))
    corpus = [{"id": str(row), "text": text} for row, text in enumerate(job["passages"][: job["corpus"]])]
    labelled = [{"query": job["questions"][question], "relevant_ids": ids} for question, ids in relevant.items()]
    # It ends by embedding the corpus for its own search, which no other side's time includes.
    encode, durations = SentenceTransformer.encode, []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = clock()
        embeddings = encode(*arguments, **options)
        durations.append(clock() - began)
        return embeddings

    SentenceTransformer.encode = timed  # type: ignore[method-assign]
    began = clock()
    memory = AdaptMem(job["base"], device="cpu")
    memory.train(corpus, labelled)
    seconds = clock() - began - durations[-1]
    memory.encoder.save_pretrained(str(Path(job["output"]) / "model"))
    (Path(job["output"]) / "seconds.json").write_text(json.dumps([seconds.tolist()]))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
