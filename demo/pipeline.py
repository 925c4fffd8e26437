"""The stages of the demo, from the corpus to the evaluated model."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from demo.console import DemoConsole, ProgressBar
from demo.corpus import Document, standard_library
from demo.request_progress import wait_for_model
from demo.retrieval import search
from demo.retrieval_task import RetrievalTask, SearchResults, embed_questions
from demo.running_system import RunningSystem
from demo.simulation import Behaviour, Simulator, describe_labels, split_questions
from foldtune.client.client import FoldtuneClient
from foldtune.client.deployment import fetch_model
from foldtune.commands.errors import UserError
from foldtune.events import ChatLog, DocumentUpserted, Feedback, FineTuneRequested, ModelReady, now
from foldtune.knobs import TrainingKnobs
from foldtune.object_store import S3ObjectStore
from foldtune.settings import Settings
from trainers.model.encoder import Embeddings, Encoder

MODEL = "library-search"
# Of the default 32 there would be fewer than fifty steps.
BATCH_SIZE = 16


@dataclass(frozen=True)
class DemoOptions:
    """The size of the demo. The defaults fit six minutes on two cores."""

    folders: int = 8
    documents: int = 2_400
    questions: int = 1_600
    held_out: int = 400
    wrong_labels: float = 0.2
    # A second epoch memorises the wrong labels, and the gate refuses the model.
    epochs: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Result:
    """The announced model, the folder it was downloaded to, and its search results beside the base model's."""

    ready: ModelReady
    model_folder: Path
    before: SearchResults
    after: SearchResults

    def summary(self, seconds: dict[str, float]) -> dict[str, Any]:
        """The result as JSON; the metrics are those of the true pairs, which are in no log."""
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
class BaseModelSearch:
    """The base model's embeddings [documents, d] of all documents, and its results on the held-out questions."""

    documents: Embeddings
    results: SearchResults


def run(options: DemoOptions, system: RunningSystem, task: RetrievalTask, console: DemoConsole) -> Result:
    """All stages that need the running system, in order."""
    base = Encoder.load(system.base_model)
    baseline = search_with_base_model(task, base, console)
    events = simulate(options, task, base, baseline.documents, console)
    publish(task, events, system.settings, console)
    ready = fine_tune(options, system, console)
    folder = download_model(ready, system, console)
    return Result(ready, folder, baseline.results, evaluate_model(task, folder, console))


def read_corpus(options: DemoOptions, console: DemoConsole) -> RetrievalTask:
    """Read the largest folders of the standard library, and split their questions.

    Raises:
        UserError: they contain fewer questions than are to be held out.
    """
    with console.stage("corpus", "Reading Python's standard library") as bar:
        corpus = standard_library().largest_folders(options.folders).sample(options.documents, options.seed)
        try:
            questions = split_questions(
                corpus.pairs, held_out=options.held_out, asked=options.questions, seed=options.seed
            )
        except ValueError as error:
            raise UserError(str(error)) from error
        bar.note(f"{len(corpus.documents):,} functions and classes in {', '.join(corpus.folders())}")
    return RetrievalTask(corpus, questions)


def search_with_base_model(task: RetrievalTask, base: Encoder, console: DemoConsole) -> BaseModelSearch:
    """Embed the documents with the base model, once for the simulated agent and for the comparison."""
    with console.stage("embed", f"Embedding {len(task.documents):,} documents with the base model") as bar:
        documents = task.embed_documents(base, bar)
        return BaseModelSearch(documents, task.search(base, documents))


def simulate(
    options: DemoOptions, task: RetrievalTask, base: Encoder, documents: Embeddings, console: DemoConsole
) -> list[ChatLog | Feedback]:
    """The chat logs and feedback of an agent that retrieves with the base model."""
    asked = task.questions.asked
    with console.stage("simulate", f"Simulating an agent and its users: {len(asked):,} questions") as bar:
        retrieved, scores = search(embed_questions(base, asked), documents)
        behaviour = Behaviour.with_wrong_labels(options.wrong_labels)
        simulator = Simulator(task.documents, until=now(), seed=options.seed, behaviour=behaviour)
        events = simulator.events(asked, retrieved, scores)
        bar.note(describe_labels(asked, events))
    return events


def publish(task: RetrievalTask, events: list[ChatLog | Feedback], settings: Settings, console: DemoConsole) -> None:
    """Send all documents, logs and feedback."""
    title = f"Publishing {len(task.documents):,} documents and {len(events):,} logs and feedback events"
    with console.stage("publish", title) as bar:
        send(task.documents, events, settings, bar)


def send(
    documents: Sequence[Document], events: Sequence[ChatLog | Feedback], settings: Settings, bar: ProgressBar
) -> None:
    """Send events through the SDK, and wait for the brokers' acknowledgements."""
    total, occurred_at = len(documents) + len(events), now()
    with FoldtuneClient(settings) as client:
        for number, document in enumerate(documents, start=1):
            client.document(DocumentUpserted(occurred_at=occurred_at, **asdict(document)))
            bar.update(number, total)
        for number, event in enumerate(events, start=len(documents) + 1):
            if isinstance(event, ChatLog):
                client.log(event)
            else:
                client.feedback(event)
            bar.update(number, total)
        client.flush()


def fine_tune(options: DemoOptions, system: RunningSystem, console: DemoConsole) -> ModelReady:
    """Request a model and wait for its announcement; raises like ``wait_for_model``."""
    request = FineTuneRequested(
        request_id=f"demo-{now():%Y%m%d-%H%M%S}",
        model=MODEL,
        requested_at=now(),
        requested_by="demo",
        origin="person",
        # All layers would gain a little more, in three times the time.
        training=TrainingKnobs(batch_size=BATCH_SIZE, epochs=options.epochs, trainable_layers=2),
        seed=options.seed,
    )
    with console.stage("train", f"Fine-tuning, request {request.request_id}") as bar:
        with FoldtuneClient(system.settings) as client:
            client.request_fine_tune(request)
        return wait_for_model(system, request.request_id, bar)


def download_model(ready: ModelReady, system: RunningSystem, console: DemoConsole) -> Path:
    """Download the announced model and verify every file's digest, as a deployer does."""
    with console.stage("fetch", f"Downloading and verifying version {ready.version}") as bar:
        folder = fetch_model(ready, S3ObjectStore(system.settings.s3), system.models)
        bar.note(str(folder))
    return folder


def evaluate_model(task: RetrievalTask, folder: Path, console: DemoConsole) -> SearchResults:
    """Search with the downloaded model."""
    with console.stage("evaluate", f"Evaluating on {len(task.questions.held_out)} held-out questions") as bar:
        tuned = Encoder.load(folder)
        return task.search(tuned, task.embed_documents(tuned, bar))
