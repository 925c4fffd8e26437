"""The base model of the demonstration: the packaged MiniLM, made to read less of a text."""

import json
import shutil
from pathlib import Path

from streams.events import ModelReference
from trainers.base_models import MINILM_SHA256, packaged_minilm_folder

# MiniLM was trained on texts of up to 128 tokens and reads up to 256. Four functions of five fit into 128, and whatever
# embeds the corpus, which is most of the demonstration's time, takes a third less.
MAX_TOKENS = 128
_READING = "sentence_bert_config.json"


def prepare_base_model(folder: Path) -> ModelReference:
    """Put the base model into the new folder ``folder``.

    Raises:
        BadModelError: the package that brings the weights is not installed.
    """
    shutil.copytree(packaged_minilm_folder(), folder)
    config = json.loads((folder / _READING).read_text())
    (folder / _READING).write_text(json.dumps(config | {"max_seq_length": MAX_TOKENS}))
    return ModelReference(uri=folder.as_uri(), weights_sha256=MINILM_SHA256)
