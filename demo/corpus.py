"""A corpus that is on every machine that can run foldtune: the source of Python's standard library.

A module or package is a folder, a function or class is a document, and the first line of its docstring is what a user
who does not know its name would ask. Whether a retriever finds the source by that line is known for certain, so the
demonstration can measure with true pairs what it trained with imperfect logs.
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

# Tests and an editor's widgets are thousands of near-equal functions that hardly anybody documents: they would be half
# of the corpus and none of its questions. lib2to3 is a copy of a grammar's machinery, turtledemo a set of drawings.
LEFT_OUT = frozenset({"test", "tests", "idle_test", "idlelib", "lib2to3", "turtledemo", "site-packages", "__pycache__"})

# What an encoder can tell apart: a stub such as `def close(self): ...` is the same text in a hundred classes.
MIN_DOCUMENT_CHARACTERS = 40
# The bound that a worker has for a passage.
MAX_DOCUMENT_BYTES = 64 * 1024
# Of fewer words ("See above.") nobody could say which document was meant.
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
    """Documents in the order of their ids, and the questions that some of them answer."""

    documents: tuple[Document, ...]
    pairs: tuple[Pair, ...]

    def folders(self) -> tuple[str, ...]:
        """The folders, the one with the most documents first."""
        counts = Counter(document.folder_id for document in self.documents)
        return tuple(sorted(counts, key=lambda folder: (-counts[folder], folder)))

    def largest(self, folders: int) -> "Corpus":
        """Only the ``folders`` with the most documents."""
        kept = frozenset(self.folders()[:folders])
        return Corpus(
            tuple(document for document in self.documents if document.folder_id in kept),
            tuple(pair for pair in self.pairs if pair.document.folder_id in kept),
        )

    def thinned(self, documents: int, seed: int) -> "Corpus":
        """At most ``documents`` of the documents, but all that answer a question; the others are drawn."""
        answers = {pair.document.document_id for pair in self.pairs}
        others = [document.document_id for document in self.documents if document.document_id not in answers]
        room = max(0, min(len(others), documents - len(answers)))
        drawn = random.Random(seed).sample(others, room)  # noqa: S311 - a draw, not a secret
        kept = answers.union(drawn)
        return Corpus(tuple(document for document in self.documents if document.document_id in kept), self.pairs)


def standard_library(root: Path | None = None) -> Corpus:
    """Every documented and undocumented definition below ``root`` (the running interpreter's library).

    The same files give the same corpus. A file that is no UTF-8 or no Python of this version is passed over, and so is
    a text that was seen before: two documents with equal text cannot be told apart by any retriever.
    """
    root = root or Path(sysconfig.get_path("stdlib"))
    documents: dict[str, Document] = {}
    asked: dict[str, list[Document]] = defaultdict(list)
    texts: set[str] = set()
    for path in _sources(root):
        for document, question in _definitions(path, path.relative_to(root)):
            if document.text in texts or document.document_id in documents:
                continue
            texts.add(document.text)
            documents[document.document_id] = document
            if question:
                asked[question].append(document)
    # Where two documents have the same first line, neither is the one right answer.
    pairs = (Pair(question, found[0]) for question, found in asked.items() if len(found) == 1)
    return Corpus(tuple(documents.values()), tuple(pairs))


def _sources(root: Path) -> list[Path]:
    paths = (path.relative_to(root) for path in root.rglob("*.py"))
    # Outside a package, hyphenated folders (config-3.11-…) hold what built the interpreter, not what it can import.
    wanted = (path for path in paths if not LEFT_OUT.intersection(path.parts) and "-" not in path.parts[0])
    return [root / path for path in sorted(wanted)]


def _definitions(path: Path, relative: Path) -> Iterator[tuple[Document, str | None]]:
    try:
        with tokenize.open(path) as file, warnings.catch_warnings():
            source = file.read()
            # What the compiler thinks of an old module's escapes is not this program's to report.
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    lines = _without_docstrings(tree, source)
    module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
    for name, node in _walk(tree, ""):
        first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
        kept = (line for line in lines[first - 1 : node.end_lineno] if line.strip())
        text = dedent(b"\n".join(kept).decode())
        if len(text) >= MIN_DOCUMENT_CHARACTERS and len(text.encode()) <= MAX_DOCUMENT_BYTES:
            folder = relative.parts[0].removesuffix(".py")
            document = Document(folder, f"{relative.as_posix()}:{name}", f"{module}.{name}", text)
            yield document, _question(ast.get_docstring(node))


def _walk(parent: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    """Classes, their methods and functions with their qualified names; what is local to a function is part of it."""
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, _DEFINITIONS):
            name = f"{prefix}{node.name}"
            yield name, node
            if isinstance(node, ast.ClassDef):
                yield from _walk(node, f"{name}.")
        elif isinstance(node, ast.If | ast.Try | ast.With):
            yield from _walk(node, prefix)


def _without_docstrings(tree: ast.Module, source: str) -> list[bytes]:
    """The lines of a module, blank where a docstring was.

    All of them: a class holds its methods, and with their docstrings it would answer their questions word for word.
    The lines are UTF-8, for the columns of ``ast`` count bytes.
    """
    lines = source.encode().split(b"\n")
    for node in ast.walk(tree):
        if isinstance(node, _DEFINITIONS) and ast.get_docstring(node, clean=False) is not None:
            docstring = node.body[0]
            start, end = docstring.lineno - 1, (docstring.end_lineno or docstring.lineno) - 1
            left = lines[start][: docstring.col_offset] + lines[end][docstring.end_col_offset :]
            lines[start : end + 1] = [left] + [b""] * (end - start)
    return lines


def _question(docstring: str | None) -> str | None:
    """The docstring's first line where that says enough to be asked, and is no signature (``f(x) -> y``)."""
    first = (docstring or "").strip().partition("\n")[0].strip()
    if "->" in first or len(first) > MAX_QUESTION_CHARACTERS:
        return None
    return first if len(first.split()) >= MIN_QUESTION_WORDS else None
