"""What the demonstration works on: documents, questions, and how well a model finds the ones by the others."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from demo.corpus import Corpus, Pair
from demo.retrieval import mean_metrics, ranks, search
from demo.screen import Bar
from demo.simulation import Split
from trainers.model.encoder import Embeddings, Encoder, passage_text
from trainers.model.tokens import Indices


@dataclass(frozen=True)
class Answers:
    """What a model made of the held-out questions: the right document's rank [q], and the row of the top hit [q]."""

    ranks: Indices
    top: Indices

    @property
    def metrics(self) -> dict[str, float]:
        """The means over the questions."""
        return mean_metrics(self.ranks)


class Material:
    """The documents of a corpus, with the questions split into asked and held-out ones."""

    def __init__(self, corpus: Corpus, questions: Split) -> None:
        self.documents = corpus.documents
        self.questions = questions
        self._rows = {document.document_id: row for row, document in enumerate(corpus.documents)}

    def embed_documents(self, encoder: Encoder, bar: Bar) -> Embeddings:
        """Embeddings [documents, d]."""
        texts = [passage_text(document.title, document.text) for document in self.documents]
        return encoder.encode(texts, "passage", progress=bar.show)

    def answers(self, encoder: Encoder, documents: Embeddings) -> Answers:
        """Search the embedded documents for every held-out question."""
        held_out = self.questions.held_out
        embedded = embed_questions(encoder, held_out)
        right = np.array([self._rows[pair.document.document_id] for pair in held_out])
        return Answers(ranks(embedded, documents, right), search(embedded, documents, 1)[0][:, 0])


def embed_questions(encoder: Encoder, pairs: Sequence[Pair]) -> Embeddings:
    """Embeddings [pairs, d] of the questions."""
    return encoder.encode([pair.question for pair in pairs], "query")
