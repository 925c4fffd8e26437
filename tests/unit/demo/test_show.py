"""What the demonstration shows where there is no terminal."""

from io import StringIO
from pathlib import Path

import numpy as np
from rich.console import Console

from demo.corpus import Corpus, Document, Pair
from demo.material import Answers, Material
from demo.screen import PLAIN_WIDTH, Screen
from demo.show import show_answers
from demo.simulation import Split
from demo.stages import Result
from foldtune.events import ModelReady


def test_the_ranks_are_shown_beside_long_questions_and_titles() -> None:
    document = Document("folder", "id", "a.title." * 30, "text")
    pair = Pair("a long question " * 20, document)
    material = Material(Corpus((document,), (pair,)), Split(asked=(), held_out=(pair,)))
    before = Answers(np.array([1_234]), np.array([0]))
    after = Answers(np.array([56]), np.array([0]))
    output = StringIO()
    ready = ModelReady.model_construct()  # type: ignore[call-arg] # none of it is shown
    result = Result(ready, Path(), before, after)
    show_answers(material, result, Screen(Console(file=output, width=PLAIN_WIDTH)))
    row = next(line for line in output.getvalue().splitlines() if "a long question" in line)
    assert [cell.strip() for cell in row.split("│")][2:4] == ["1,234", "56"]
