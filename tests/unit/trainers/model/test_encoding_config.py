"""The configuration files of sentence-transformers."""

import json
from pathlib import Path

import pytest

from trainers.errors import BadModelError
from trainers.model.base_models import packaged_minilm_folder
from trainers.model.encoding_config import EncodingConfig, read_encoding_config, write_encoding_config


def test_an_encoding_config_is_read_as_it_was_written(tmp_path: Path) -> None:
    encoding_config = EncodingConfig(
        "lasttoken", normalize=False, max_tokens=99, query_prompt="query: ", passage_prompt="passage: "
    )
    write_encoding_config(encoding_config, tmp_path, dimension=32, max_tokens=99)
    assert read_encoding_config(tmp_path) == encoding_config
    assert read_encoding_config(packaged_minilm_folder()) == EncodingConfig("mean", normalize=True, max_tokens=256)


def test_an_unknown_module_is_refused(tmp_path: Path) -> None:
    (tmp_path / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense", "path": "2_D"}]))
    with pytest.raises(BadModelError, match="Dense"):
        read_encoding_config(tmp_path)
