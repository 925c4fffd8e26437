"""What foldtune publishes embeds equally in the oldest and the newest libraries that read its base model."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from uv import find_uv_bin

from tests import layouts
from tests.integration.trainers.embed_with_library import embeddings
from tests.layouts import LAYOUTS
from trainers.model.encoder import Encoder
from trainers.publishing.artifacts import write_model

# Earlier versions of sentence-transformers leave out spaces around a text, which some tokenizers count as a word.
TEXTS = [text.strip() for text in layouts.TEXTS]
# Layouts that came later than sentence-transformers 3.0 and transformers 4.41, of May 2024.
LATER = {"gte-modernbert", "nomic-modernbert", "qwen3-embedding", "embedding-gemma", "router"}
# Packages, and the layouts that they know. Older than these, sentence-transformers has no similarity function.
ENVIRONMENTS: dict[str, tuple[tuple[str, ...], set[str]]] = {
    "oldest": (("sentence-transformers==3.0.0", "transformers==4.41.0", "numpy<2"), set(LAYOUTS) - LATER),
    # A Router of sentence-transformers 6 names modules that earlier versions do not have.
    "oldest of later layouts": (("sentence-transformers==5.1.0", "transformers==4.57.0"), set(LAYOUTS) - {"router"}),
    "newest": (("sentence-transformers", "transformers"), set(LAYOUTS)),
}


def published(base: Path, folder: Path) -> Path:
    """A model as a training leaves it: every weight of the transformer moved."""
    encoder = Encoder.load(base, "cpu")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in encoder.transformer.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    write_model(encoder, folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Published folders by layout, and how the library of this environment embeds the texts with them."""
    made = {}
    for name, make in LAYOUTS.items():
        folder = tmp_path_factory.mktemp("published")
        published(make(folder / "base"), folder / "model")
        model: Any = SentenceTransformer(str(folder / "model"), device="cpu", local_files_only=True)
        made[name] = folder / "model", embeddings(model, TEXTS)
    return made


@pytest.mark.matrix
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_a_published_model_embeds_equally_in_other_versions_of_the_libraries(
    environment: str, models: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    packages, known = ENVIRONMENTS[environment]
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"texts": TEXTS, "models": {name: str(models[name][0]) for name in known}}))
    command = [find_uv_bin(), "run", "--quiet", "--isolated", "--no-project"]
    # The same torch, so that it is not downloaded again.
    for package in (*packages, f"torch=={version('torch')}"):
        command += ["--with", package]
    script = Path(__file__).with_name("embed_with_library.py")
    offline = os.environ | {"HF_HUB_OFFLINE": "1"}
    subprocess.run([*command, "python", "-W", "ignore", str(script), str(job)], check=True, env=offline)
    found = np.load(job.with_suffix(".npz"))
    for name in known:
        expected = models[name][1]
        # Older versions have no prompts but the model's own, and no methods by the kind of text.
        ways = {way for way in expected if f"{name}/{way}" in found}
        assert "" in ways
        assert ways == set(expected) or environment == "oldest"
        for way in ways:
            # Earlier versions do not read the base's truncate_dim, and give all numbers.
            width = None if environment == "newest" else expected[way].shape[1]
            np.testing.assert_allclose(
                found[f"{name}/{way}"][:, :width], expected[way], rtol=0, atol=1e-6, err_msg=f"{name} {way!r}"
            )
