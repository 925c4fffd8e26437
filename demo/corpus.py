"""A corpus that is on every machine that can run foldtune: the source of Python's standard library.

A module or package is a folder, a function or class is a document, and the first line of its docstring is the question
of a user who does not know its name. These pairs are true, so a model trained on imperfect logs is evaluated on them.
"""

import ast
import random
import sysconfig
import tokenize
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

# Tests and IDLE are thousands of similar, mostly undocumented functions: they would be half of the corpus and none of
# its questions. lib2to3 duplicates parser code, turtledemo is a set of drawings.
EXCLUDED = frozenset({"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__"})

# A stub such as `def close(self): ...` is the same text in a hundred classes.
MIN_DOCUMENT_CHARACTERS = 40
# The worker's default bound for a passage.
MAX_DOCUMENT_BYTES = 64 * 1024
# Fewer words ("See above.") do not identify a document.
MIN_QUESTION_WORDS = 4
MAX_QUESTION_CHARACTERS = 300

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


@dataclass(frozen=True)
class Document:
    """One function or class: ``asyncio/base_events.py:BaseEventLoop.run_forever`` in the folder ``asyncio``."""

    folder_id: str
    document_id: str
    title: str
    text: str


@dataclass(frozen=True)
class Pair:
    """A question and the one document that answers it."""

    question: str
    document: Document


@dataclass(frozen=True)
class Corpus:
    """Documents in the order of their files, and the questions that some of them answer."""

    documents: tuple[Document, ...]
    pairs: tuple[Pair, ...]

    def folders(self) -> tuple[str, ...]:
        """The folders, largest first."""
        counts = Counter(document.folder_id for document in self.documents)
        return tuple(sorted(counts, key=lambda folder: (-counts[folder], folder)))

    def largest_folders(self, count: int) -> "Corpus":
        """The ``count`` folders with the most documents."""
        folders = frozenset(self.folders()[:count])
        return Corpus(
            tuple(document for document in self.documents if document.folder_id in folders),
            tuple(pair for pair in self.pairs if pair.document.folder_id in folders),
        )

    def sample(self, documents: int, seed: int) -> "Corpus":
        """All documents that answer a question, and a random sample of the others up to ``documents`` in total."""
        answers = {pair.document.document_id for pair in self.pairs}
        others = [document.document_id for document in self.documents if document.document_id not in answers]
        size = max(0, min(len(others), documents - len(answers)))
        sampled = answers.union(random.Random(seed).sample(others, size))  # noqa: S311 - a sample, not a secret
        return Corpus(tuple(document for document in self.documents if document.document_id in sampled), self.pairs)


def standard_library(root: Path | None = None) -> Corpus:
    """All functions and classes below ``root`` (default: the running interpreter's library), documented or not.

    Deterministic for the same files. Skips files that are not UTF-8 or not valid in this Python version, and duplicate
    texts, which no retriever could tell apart.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    documents: dict[str, Document] = {}
    answers: dict[str, list[Document]] = defaultdict(list)
    texts: set[str] = set()
    for path in _sources(root):
        for document, question in _definitions(path, path.relative_to(root)):
            if document.text in texts or document.document_id in documents:
                continue
            texts.add(document.text)
            documents[document.document_id] = document
            if question:
                answers[question].append(document)
    # A question with several answers has no single right document.
    pairs = (Pair(question, right[0]) for question, right in answers.items() if len(right) == 1)
    return Corpus(tuple(documents.values()), tuple(pairs))


def _sources(root: Path) -> list[Path]:
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    # Hyphenated folders at the top (config-3.11-…) contain the interpreter's build files, not importable modules.
    sources = (path for path in paths if not EXCLUDED.intersection(path.parts) and "-" not in path.parts[0])
    return [root / path for path in sorted(sources)]


def _definitions(path: Path, relative: Path) -> Iterator[tuple[Document, str | None]]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            source = file.read()
            # The compiler warns about escapes in old modules.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = _without_docstrings(tree, source)
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    for name, node in _walk(tree, ""):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        code = (line for line in lines[first - 1 : node.end_lineno] if line.strip())
        text = dedent(b"\n".join(code).decode())
        if len(text) >= MIN_DOCUMENT_CHARACTERS and len(text.encode()) <= MAX_DOCUMENT_BYTES:
            folder = relative.parts[0].removesuffix(".py")
            document = Document(folder, f"{relative.as_posix()}:{name}", f"{module}.{name}", text)
            yield document, _question(ast.get_docstring(node))


def _walk(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Classes, methods and functions with their qualified names; local definitions are part of their function."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _DEFINITIONS):
            name = f"{prefix}{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _walk(node, f"{name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _walk(node, prefix)


def _without_docstrings(tree: ast.Module, source: str) -> list[bytes]:
    """The lines of a module with every docstring blanked.

    Nested ones too: a class contains its methods, and their docstrings would answer their questions word for word.
    The lines are UTF-8, because the columns of ``ast`` count bytes.
    """
    lines = source.encode().split(b"\n")
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            start, end = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
            remainder = lines[start][: docstring.col_offset] + lines[end][docstring.end_col_offset :]
            lines[start : end + 1] = [remainder] + [b""] * (end - start)
    return lines


def _question(docstring: str | None) -> str | None:
    """The docstring's first line, unless it is too short, too long, or a signature (``f(x) -> y``)."""
    first = (docstring or "").strip().partition("\n")[0].strip()
    if "->" in first or len(first) > MAX_QUESTION_CHARACTERS:
        return None
    return first if len(first.split()) >= MIN_QUESTION_WORDS else None
