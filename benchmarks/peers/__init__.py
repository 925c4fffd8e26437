"""Other ways to adapt a retrieval model, each in an environment of its own, since their libraries pin other versions.

A peer's script reads a JSON file (``base``: folder of the base model; ``questions``, ``passages``, ``corpus``: the
number of passages searched; ``pairs``: positions of question and positive; ``rates``, ``seed``, ``output``: a folder),
trains as its library documents, and writes to ``output`` its results, the best to be chosen on validation questions,
and ``seconds.json``, the elapsed and CPU seconds of each. It is never imported here.
"""

import json
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from uv import find_uv_bin

from benchmarks.retrieval import Weights
from trainers.data.dataset import Dataset
from trainers.model.tokens import Indices

# The versions of this environment, so that nothing is downloaded twice.
_SHARED = ("torch", "transformers", "sentence-transformers", "datasets", "accelerate", "numpy")


@dataclass(frozen=True)
class Peer:
    """A script beside this file, with the packages that it needs."""

    script: str
    packages: tuple[str, ...]
    learning_rates: tuple[float, ...] = ()


# Versions newest on 2026-11-27. The adapter's own learning rate is 2e-5, with which a matrix of this size hardly moves
# in some hundred steps, so larger ones are tried as well.
LINEAR_ADAPTER = Peer(
    "linear_adapter.py", ("llama-index-finetuning==0.4.2", "mistralai<2"), learning_rates=(2e-5, 2e-4, 2e-3)
)
ADAPTMEM = Peer("adaptmem_wrapper.py", ("adaptmem==0.6.0",))


@contextmanager
def run(
    peer: Peer, base: Path, dataset: Dataset, examples: Indices, seed: int
) -> Iterator[tuple[Path, list[tuple[float, float]]]]:
    """Train ``peer`` on the ``examples`` of ``dataset``, from the model of ``base``; yields what it wrote, and the
    elapsed and CPU seconds of each of its trainings.

    Raises:
        CalledProcessError: its packages cannot be installed, or it failed; its output was printed.
    """
    with tempfile.TemporaryDirectory(prefix="foldtune-bench-") as name:
        output = Path(name)
        job: dict[str, Any] = {
            "base": str(base),
            "questions": dataset.questions,
            "passages": dataset.passages,
            "corpus": dataset.documents,
            "pairs": np.stack([dataset.question[examples], dataset.positive[examples]], axis=1).tolist(),
            "rates": peer.learning_rates,
            "seed": seed,
            "output": name,
        }
        (output / "job.json").write_text(json.dumps(job))
        packages = [*peer.packages, *(f"{package}=={version(package)}" for package in _SHARED)]
        command = [find_uv_bin(), "run", "--quiet", "--isolated", "--no-project"]
        command += [option for package in packages for option in ("--with", package)]
        script = str(Path(__file__).with_name(peer.script))
        subprocess.run([*command, "python", "-W", "ignore", script, str(output / "job.json")], check=True)
        yield output, json.loads((output / "seconds.json").read_text())


def query_maps(output: Path) -> Weights:
    """The matrices of the linear adapter ``[rates, d, d]``."""
    return np.asarray(np.load(output / "query_maps.npy", allow_pickle=False), dtype=np.float32)
