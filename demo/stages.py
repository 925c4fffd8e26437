"""The demonstration from its start to its result, stage by stage."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo.corpus import standard_library
from demo.following import follow
from demo.material import Answers, Material, embed_questions
from demo.retrieval import search
from demo.screen import Screen
from demo.simulation import Habits, Simulator, described, split
from demo.surroundings import Surroundings
from foldtune.client.client import FoldtuneClient
from foldtune.client.deployment import fetch_model
from foldtune.commands.errors import UserError
from foldtune.events import ChatLog, DocumentUpserted, Feedback, FineTuneRequested, ModelReady, now
from foldtune.knobs import TrainingKnobs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from trainers.model.encoder import Embeddings, Encoder

MODEL = "library-search"


@dataclass(frozen=True)
class Plan:
    """How large the demonstration is. The defaults fit six minutes on two cores."""

    folders: int = 8
    documents: int = 2_400
    questions: int = 1_600
    held_out: int = 400
    wrong_labels: float = 0.2
    # A second epoch learns the wrong labels by heart: the gate then holds the model back.
    epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """What came out: the announced model, where it was fetched to, and its answers beside those of the base model."""

    ready: ModelReady
    model_folder: Path
    before: Answers
    after: Answers

    def report(self, seconds: dict[str, float]) -> dict[str, Any]:
        """The result in numbers; the metrics are those of the true pairs, which were in no log."""
        return {
            "request_id": self.ready.request_id,
            "model": self.ready.model,
            "version": self.ready.version,
            "model_uri": self.ready.model_uri,
            "before": self.before.metrics,
            "after": self.after.metrics,
            "seconds": seconds,
        }


@dataclass(frozen=True)
class Searched:
    """The base model's view: embeddings of all documents, and its answers to the held-out questions."""

    documents: Embeddings
    answers: Answers


def read_corpus(plan: Plan, screen: Screen) -> Material:
    """The plan's folders of the standard library.

    Raises:
        UserError: they hold fewer questions than are to be held out.
    """
    with screen.stage("corpus", "Reading Python's standard library") as bar:
        corpus = standard_library().largest(plan.folders).thinned(plan.documents, plan.seed)
        try:
            questions = split(corpus.pairs, held_out=plan.held_out, asked=plan.questions, seed=plan.seed)
        except ValueError as error:
            raise UserError(str(error)) from error
        material = Material(corpus, questions)
        bar.note(f"{len(material.documents):,} functions and classes in {', '.join(corpus.folders())}")
    return material


def search_with_base(material: Material, base: Encoder, screen: Screen) -> Searched:
    """Embed everything with the base model, once for the simulated agent and for the comparison."""
    with screen.stage("embed", f"Embedding {len(material.documents):,} documents with the base model") as bar:
        documents = material.embed_documents(base, bar)
        return Searched(documents, material.answers(base, documents))


def simulate(
    plan: Plan, material: Material, base: Encoder, documents: Embeddings, screen: Screen
) -> list[ChatLog | Feedback]:
    """The logs and the feedback of an agent that retrieves with the base model."""
    asked = material.questions.asked
    with screen.stage("simulate", f"Simulating an agent and its users: {len(asked):,} questions") as bar:
        found, scores = search(embed_questions(base, asked), documents)
        habits = Habits.with_wrong_labels(plan.wrong_labels)
        events = Simulator(material.documents, until=now(), seed=plan.seed, habits=habits).events(asked, found, scores)
        bar.note(described(asked, events))
    return events


def publish(material: Material, events: list[ChatLog | Feedback], settings: Settings, screen: Screen) -> None:
    """Send all documents, logs and feedback through the SDK, and wait until the brokers have them."""
    total = len(material.documents) + len(events)
    text = f"Publishing {len(material.documents):,} documents and {len(events):,} logs and verdicts"
    with screen.stage("publish", text) as bar, FoldtuneClient(settings) as client:
        moment = now()
        for number, document in enumerate(material.documents, start=1):
            client.document(DocumentUpserted(occurred_at=moment, **asdict(document)))
            bar.show(number, total)
        for number, event in enumerate(events, start=len(material.documents) + 1):
            if isinstance(event, ChatLog):
                client.log(event)
            else:
                client.feedback(event)
            bar.show(number, total)
        client.flush()


def train(plan: Plan, surroundings: Surroundings, screen: Screen) -> ModelReady:
    """Ask for a model, and follow the request to its announcement; raises like ``follow``."""
    request = FineTuneRequested(
        request_id=f"demo-{now():%Y%m%d-%H%M%S}",
        model=MODEL,
        requested_at=now(),
        requested_by="demo",
        origin="person",
        # All of them would find a little more, in three times the time.
        training=TrainingKnobs(epochs=plan.epochs, trainable_layers=2),
        seed=plan.seed,
    )
    with screen.stage("train", f"Fine-tuning, as {request.request_id}") as bar:
        with FoldtuneClient(surroundings.settings) as client:
            client.request_fine_tune(request)
        return follow(surroundings, request.request_id, bar)


def fetch(ready: ModelReady, surroundings: Surroundings, screen: Screen) -> Path:
    """Do as a deployer does: download the announced model, and check every file's digest."""
    with screen.stage("fetch", f"Fetching and verifying version {ready.version}") as bar:
        folder = fetch_model(ready, S3ObjectStore(surroundings.settings.s3), surroundings.folder / "models")
        bar.note(str(folder))
    return folder


def compare(material: Material, folder: Path, screen: Screen) -> Answers:
    """Ask the fetched model the held-out questions."""
    held_out = len(material.questions.held_out)
    with screen.stage("evaluate", f"Asking the new model {held_out} questions that were in no log") as bar:
        tuned = Encoder.load(folder)
        return material.answers(tuned, material.embed_documents(tuned, bar))


def run(plan: Plan, surroundings: Surroundings, material: Material, screen: Screen) -> Result:
    """All that needs running servers, in order."""
    base = Encoder.load(surroundings.base_model)
    searched = search_with_base(material, base, screen)
    publish(material, simulate(plan, material, base, searched.documents, screen), surroundings.settings, screen)
    ready = train(plan, surroundings, screen)
    folder = fetch(ready, surroundings, screen)
    return Result(ready, folder, searched.answers, compare(material, folder, screen))
