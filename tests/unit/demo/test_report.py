"""The demo's report without a terminal."""

from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console

from demo.console import PLAIN_WIDTH, DemoConsole
from demo.corpus import Corpus, Document, Pair
from demo.pipeline import Result
from demo.report import print_results
from demo.retrieval_task import RetrievalTask, SearchResults
from demo.simulation import QuestionSplit
from foldtune.events import ModelReady


def test_the_ranks_are_shown_beside_long_questions_and_titles() -> None:
    document = Document("folder", "id", "a.title." * 30, "text")
    pair = Pair("a long question " * 20, document)
    task = RetrievalTask(Corpus((document,), (pair,)), QuestionSplit(asked=(), held_out=(pair,)))
    before = SearchResults(np.array([1_234]), np.array([0]))
    after = SearchResults(np.array([56]), np.array([0]))
    output = StringIO()
    ready = ModelReady.model_construct()  # type: ignore[call-arg] # the report does not show it
    result = Result(ready, Path(), before, after)
    print_results(task, result, DemoConsole(Console(file=output, width=PLAIN_WIDTH)))
    row = next(line for line in output.getvalue().splitlines() if "a long question" in line)
    assert [cell.strip() for cell in row.split("│")][2:4] == ["1,234", "56"]
