"""The retrieval task of the demo: find the documents of a corpus by its held-out questions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.console import ProgressBar
from demo.corpus import Corpus, Pair
from demo.retrieval import mean_metrics, ranks, search
from demo.simulation import QuestionSplit
from foldtune.texts import passage_text
from trainers.model.encoder import Embeddings, Encoder
from trainers.model.tokens import Indices


@dataclass(frozen=True)
class SearchResults:
    """For each held-out question: the rank [q] of its right document, and the row [q] of the top hit."""

    ranks: Indices
    top_hits: Indices

    @property
    def metrics(self) -> dict[str, float]:
        """Means over the questions, by the usual names."""
        return mean_metrics(self.ranks)


class RetrievalTask:
    """The documents of a corpus, and its questions split into asked and held-out ones."""

    def __init__(self, corpus: Corpus, questions: QuestionSplit) -> None:
        self.documents = corpus.documents
        self.questions = questions
        self._rows = {document.document_id: row for row, document in enumerate(corpus.documents)}

    def embed_documents(self, encoder: Encoder, bar: ProgressBar) -> Embeddings:
        """Embeddings [documents, d]."""
        texts = [passage_text(document.title, document.text) for document in self.documents]
        return encoder.encode(texts, "passage", progress=bar.update)

    def search(self, encoder: Encoder, documents: Embeddings) -> SearchResults:
        """Search the embedded ``documents`` [documents, d] with every held-out question."""
        held_out = self.questions.held_out
        queries = embed_questions(encoder, held_out)
        right = np.array([self._rows[pair.document.document_id] for pair in held_out])
        return SearchResults(ranks(queries, documents, right), search(queries, documents, 1)[0][:, 0])


def embed_questions(encoder: Encoder, pairs: Sequence[Pair]) -> Embeddings:
    """Embeddings [pairs, d] of the questions."""
    return encoder.encode([pair.question for pair in pairs], "query")
