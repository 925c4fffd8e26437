"""The demo's corpus: documents, questions, and that no document contains its question."""

import asyncio
import shutil
from pathlib import Path
from textwrap import dedent

import pytest

from demo.corpus import MAX_DOCUMENT_BYTES, Corpus, standard_library


def corpus_of(root: Path, files: dict[str, str | bytes]) -> Corpus:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else dedent(content).encode())
    return standard_library(root)


SHAPES = '''
    class Shape:
        """Base of everything that can be drawn."""

        sides: int = 0

        @property
        def area(self) -> float:
            """
            Return the area in square metres.

            In more words.
            """
            raise NotImplementedError("é")

    if True:
        def unfold(shape, *, twice=False): "Fold a shape out to a plane."; return shape.area + twice
'''


def test_definitions_become_documents_and_first_lines_questions(tmp_path: Path) -> None:
    corpus = corpus_of(tmp_path, {"shapes/plane.py": SHAPES, "other.py": "def f(first, second): return first @ second"})

    assert [document.document_id for document in corpus.documents] == [
        "other.py:f",
        "shapes/plane.py:Shape",
        "shapes/plane.py:Shape.area",
        "shapes/plane.py:unfold",
    ]
    assert {pair.question: pair.document.title for pair in corpus.pairs} == {
        "Base of everything that can be drawn.": "shapes.plane.Shape",
        "Return the area in square metres.": "shapes.plane.Shape.area",
        "Fold a shape out to a plane.": "shapes.plane.unfold",
    }
    assert corpus.folders() == ("shapes", "other")
    assert {document.folder_id for document in corpus.largest_folders(1).documents} == {"shapes"}
    assert len(corpus.sample(4, seed=0).documents) == 4
    assert "other.py:f" not in {document.document_id for document in corpus.sample(1, seed=0).documents}
    assert corpus.sample(1, seed=0).pairs == corpus.pairs


def test_documents_contain_no_docstring(tmp_path: Path) -> None:
    texts = {document.title: document.text for document in corpus_of(tmp_path, {"shapes.py": SHAPES}).documents}

    assert texts["shapes.Shape.area"] == ('@property\ndef area(self) -> float:\n    raise NotImplementedError("é")')
    assert "Base of everything" not in texts["shapes.Shape"]
    assert "square metres" not in texts["shapes.Shape"]
    assert texts["shapes.unfold"] == "def unfold(shape, *, twice=False): ; return shape.area + twice"


@pytest.mark.parametrize("docstring", ["", "See the above.", "area(width, height) -> float with a sign", "word " * 100])
def test_too_short_or_too_long_first_lines_are_not_questions(tmp_path: Path, docstring: str) -> None:
    source = f'def area(width, height):\n    """{docstring}"""\n    return abs(width * height)\n'
    corpus = corpus_of(tmp_path, {"shapes.py": source})

    assert len(corpus.documents) == 1
    assert corpus.pairs == ()


def test_a_question_with_two_right_documents_gives_no_pair(tmp_path: Path) -> None:
    source = 'def {0}(width, height):\n    """Return how large it is."""\n    return width {1} height\n'
    corpus = corpus_of(tmp_path, {"shapes.py": source.format("area", "*") + source.format("edge", "+")})

    assert len(corpus.documents) == 2
    assert corpus.pairs == ()


def test_tests_duplicates_and_unreadable_files_are_skipped(tmp_path: Path) -> None:
    definition = "def area(width, height): return abs(width * height)\n"
    huge = f"def huge(): return '{'x' * MAX_DOCUMENT_BYTES}'\n"
    corpus = corpus_of(
        tmp_path,
        {
            "broken.py": "def area(:",
            "copy.py": definition,
            "copy_again.py": definition,
            "huge.py": huge,
            "latin.py": b"def area(): return '\xe9 with some more characters'",
            "shapes/test/area.py": definition,
            "site-packages/area.py": definition,
            "short.py": "def a(): ...\n",
        },
    )

    assert [document.document_id for document in corpus.documents] == ["copy.py:area"]


def test_a_package_of_the_standard_library(tmp_path: Path) -> None:
    shutil.copytree(Path(asyncio.__file__).parent, tmp_path / "asyncio")
    corpus = standard_library(tmp_path)

    assert len(corpus.documents) > 700
    assert len(corpus.pairs) > 200
    assert "asyncio/base_events.py:BaseEventLoop.run_forever" in {document.document_id for document in corpus.documents}
    assert len({document.document_id for document in corpus.documents}) == len(corpus.documents)
    assert not [pair.question for pair in corpus.pairs if f'"""{pair.question}' in pair.document.text]


def test_the_same_library_gives_the_same_corpus(tmp_path: Path) -> None:
    assert corpus_of(tmp_path, {"shapes.py": SHAPES}) == corpus_of(tmp_path, {"shapes.py": SHAPES})
