"""The simulated agent of ``foldtune demo --loop``: it answers with the newest model that was deployed to it."""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from demo.console import ProgressBar
from demo.corpus import Pair
from demo.retrieval import search
from demo.retrieval_task import RetrievalTask, SearchResults, embed_questions
from demo.simulation import Behaviour, Simulator
from foldtune.events import ChatLog, Feedback
from trainers.model.encoder import Encoder


class Agent:
    """An encoder and an index of the documents that it has embedded; the users are simulated, too."""

    def __init__(self, task: RetrievalTask, *, behaviour: Behaviour, seed: int) -> None:
        self._task = task
        self._behaviour = behaviour
        self._seed = seed
        self._logs = 0

    def deploy(self, model_folder: Path, bar: ProgressBar) -> SearchResults:
        """Answer with this model from now on; returns what it finds of the held-out questions."""
        self._encoder = Encoder.load(model_folder)
        self._index = self._task.embed_documents(self._encoder, bar)
        return self._task.search(self._encoder, self._index)

    def break_index(self, folder_id: str) -> None:
        """Confuse a folder's documents in the index with each other, until a model is deployed."""
        rows = np.array(
            [row for row, document in enumerate(self._task.documents) if document.folder_id == folder_id],
            dtype=np.int64,
        )
        self._index[rows] = self._index[np.random.default_rng(self._seed).permutation(rows)]

    def answer(self, pairs: tuple[Pair, ...], until: datetime, period: timedelta) -> list[ChatLog | Feedback]:
        """Logs and feedback of the ``period`` that ends at ``until``."""
        simulator = Simulator(
            self._task.documents,
            until=until,
            seed=self._seed + self._logs,
            behaviour=self._behaviour,
            period=period,
            first_log=self._logs,
        )
        self._logs += len(pairs)
        return simulator.events(pairs, *search(embed_questions(self._encoder, pairs), self._index))
