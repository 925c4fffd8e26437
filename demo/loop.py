"""``foldtune demo --loop N``: a system that trains by its policy, N rounds in a row, without any request of a person.

The demo only publishes documents, logs and feedback, and deploys what is announced. In each round the agent answers new
questions with its newest model, and the policy's rule ``growth`` requests a training, which starts from the newest
version. Then the agent's index of one folder breaks, whose answers get worse, and the rule ``quality`` notices.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from demo.agent import Agent
from demo.console import DemoConsole, ProgressBar
from demo.corpus import Document, Pair
from demo.pipeline import BATCH_SIZE, MODEL, DemoOptions, send
from demo.request_progress import NoModelError
from demo.retrieval_task import RetrievalTask
from demo.running_system import RunningSystem
from demo.simulation import PERIOD, Behaviour
from demo.timeline import Entry, Timeline
from foldtune.client.deployment import fetch_model
from foldtune.commands.errors import UserError
from foldtune.events import ChatLog, Feedback, State, now
from foldtune.knobs import TrainingKnobs
from foldtune.object_store import S3ObjectStore
from foldtune.policy import QualityFall, RuleData
from foldtune.settings import PolicyRule, PolicySettings

# The gate promotes for gains that are no chance. Rounds of about 500 questions are mostly enough for that.
LOOP_OPTIONS = DemoOptions(folders=5, documents=1_600, questions=1_300, held_out=150, wrong_labels=0.05, epochs=2)
# Of a round's questions. About nine in ten get a label: those left when so many are counted ask for no training.
_NEW_EXAMPLES_SHARE = 0.7
_DAY = timedelta(days=1)
# Whole days: what happens during the demo is of today, or of yesterday if it runs over midnight.
_QUALITY = QualityFall(window=2 * _DAY, baseline=28 * _DAY)
# The first round's logs are older than that window, the watched folder's not older than the baseline.
_HISTORY_ENDED = 3 * _DAY
# The others' are newer than the deployment before them, and so than the snapshot of its training.
_LIVE = timedelta(seconds=5)


@dataclass(frozen=True)
class Script:
    """Which questions are asked: those of each round, and those on the watched folder before and after it breaks."""

    watched: str
    rounds: tuple[tuple[Pair, ...], ...]
    before: tuple[Pair, ...]
    after: tuple[Pair, ...]

    @classmethod
    def of(cls, asked: Sequence[Pair], rounds: int) -> Self:
        """The folder with the fewest questions is watched; the questions on the others are the rounds'.

        Raises:
            UserError: there is only one folder, or a round without a question.
        """
        counts = Counter(pair.document.folder_id for pair in asked)
        watched = min(counts, key=lambda folder: (counts[folder], folder))
        of_watched = [pair for pair in asked if pair.document.folder_id == watched]
        others = [pair for pair in asked if pair.document.folder_id != watched]
        size, half = len(others) // rounds, len(of_watched) // 2
        if not size or not half:
            msg = f"{len(asked)} questions in {len(counts)} folders are too few for {rounds} rounds and a folder beside"
            raise UserError(msg)
        of_rounds = tuple(tuple(others[number * size : (number + 1) * size]) for number in range(rounds))
        return cls(watched, of_rounds, tuple(of_watched[:half]), tuple(of_watched[half:]))

    def policy(self, options: DemoOptions) -> PolicySettings:
        """The rules: ``growth`` of the folders of the rounds, and ``quality`` of all.

        A training of ``growth`` has nothing of the watched folder, so ``quality`` does not wait for its effect there.
        """
        training = TrainingKnobs(batch_size=BATCH_SIZE, epochs=options.epochs, trainable_layers=2, start="incumbent")
        folders = sorted({pair.document.folder_id for pairs in self.rounds for pair in pairs})
        common: dict[str, Any] = {"model": MODEL, "cooldown": timedelta(0), "training": training}
        growth = PolicyRule(
            name="growth",
            data=RuleData(folders=tuple(folders)),
            new_examples=max(1, int(_NEW_EXAMPLES_SHARE * len(self.rounds[0]))),
            **common,
        )
        quality = PolicyRule(name="quality", quality=_QUALITY, **common)
        return PolicySettings(rules=(growth, quality), interval=timedelta(seconds=2))


def run_loop(
    options: DemoOptions, script: Script, system: RunningSystem, task: RetrievalTask, console: DemoConsole
) -> dict[str, Any]:
    """All rounds and the fall; returns the last line of the output.

    Raises:
        NoModelError: a training was rejected or has failed, or something did not happen in time.
        ProcessExitedError: a server or process of the system has exited.
    """
    with Timeline.follow(system) as timeline:
        loop = _Loop(options, script, system, task, timeline)
        with console.stage("embed", f"Embedding {len(task.documents):,} documents with the base model") as bar:
            loop.deploy("base model", system.base_model, bar)
        for number, pairs in enumerate(script.rounds, start=1):
            title = f"Round {number}: {len(pairs)} questions, and what follows by itself"
            with console.stage(f"round_{number}", title) as bar:
                loop.round(number, pairs, bar)
        with console.stage("fall", f"Confusing the agent's index of {script.watched}") as bar:
            loop.fall(bar)
        rules = script.policy(options).model_dump(mode="json", exclude_defaults=True)["rules"]
        return {
            "model": MODEL,
            "options": asdict(options),
            "behaviour": asdict(Behaviour.with_wrong_labels(options.wrong_labels)),
            "rules": rules,
            "events": timeline.entries,
            "seconds": console.durations(),
        }


class _Loop:
    def __init__(
        self, options: DemoOptions, script: Script, system: RunningSystem, task: RetrievalTask, timeline: Timeline
    ) -> None:
        self._script = script
        self._system = system
        self._task = task
        self._timeline = timeline
        self._agent = Agent(task, behaviour=Behaviour.with_wrong_labels(options.wrong_labels), seed=options.seed)

    def round(self, number: int, pairs: tuple[Pair, ...], bar: ProgressBar) -> None:
        """Ask questions, and wait for the end of the training that the policy requests."""
        if number == 1:
            ended = now() - _HISTORY_ENDED
            history = self._agent.answer(self._script.before, ended, PERIOD / 3)
            self._publish(self._task.documents, history + self._agent.answer(pairs, ended, PERIOD), bar)
        else:
            self._publish((), self._agent.answer(pairs, now(), _LIVE), bar)

        def requested(entries: list[Entry]) -> Entry | None:
            requests = [entry for entry in entries if entry["event"] == "requested"]
            return requests[number - 1] if len(requests) >= number else None

        self._finish(self._timeline.wait_for(requested, f"request {number}", bar)["request_id"], bar)

    def fall(self, bar: ProgressBar) -> None:
        """Break the index, ask on that folder, and wait for what the policy decides on it."""
        self._agent.break_index(self._script.watched)
        self._timeline.add("index_broken", folder=self._script.watched)
        self._publish((), self._agent.answer(self._script.after, now(), _LIVE), bar)

        def noticed(entries: list[Entry]) -> Entry | None:
            return next((entry for entry in entries if "quality" in entry.get("met", ())), None)

        decided = self._timeline.wait_for(noticed, "a decision on quality", bar)
        if decided["request_id"]:
            self._finish(decided["request_id"], bar)

    def deploy(self, version: str, folder: Path, bar: ProgressBar) -> None:
        """Let the agent answer with a model."""
        found = self._agent.deploy(folder, bar)
        self._timeline.add("deployed", version=version, true_ndcg=round(found.metrics["ndcg@10"], 4))

    def _publish(self, documents: Sequence[Document], events: list[ChatLog | Feedback], bar: ProgressBar) -> None:
        send(documents, events, self._system.settings, bar)
        logs = sum(isinstance(event, ChatLog) for event in events)
        self._timeline.add("published", documents=len(documents), logs=logs, feedback=len(events) - logs)

    def _finish(self, request_id: str, bar: ProgressBar) -> None:
        """Wait for the end of a request, and deploy its model if it was promoted."""

        def ended(entries: list[Entry]) -> Entry | None:
            final = (entry for entry in entries if entry.get("state") and State(entry["state"]).terminal)
            return next((entry for entry in final if entry["request_id"] == request_id), None)

        end = self._timeline.wait_for(ended, f"the end of {request_id}", bar)
        if end["state"] != State.COMPLETED:
            raise NoModelError(f"request {request_id} was {end['state']}: {'; '.join(end.get('reasons', ()))}")
        if end["promoted"]:
            ready = self._timeline.wait_for_model(request_id, bar)
            folder = fetch_model(ready, S3ObjectStore(self._system.settings.s3), self._system.models)
            self.deploy(ready.version, folder, bar)
