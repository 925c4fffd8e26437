"""Which of a folder's logs a request selects as examples, and why it leaves out the others."""

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from foldtune.knobs import DataSelection
from foldtune.settings import LabelWeights
from streams.snapshots.labels import Example, label, without_deleted
from streams.training_sets.fold import FolderSet, JudgedLog
from streams.training_sets.store import PartitionView

TOO_OLD = "older than sets.max_age"


@dataclass
class Tally:
    """Logs without an example, and verdicts and logs that do not count, each by reason."""

    left_out: Counter[str] = field(default_factory=Counter)
    ignored: Counter[str] = field(default_factory=Counter)


def select(
    folder: FolderSet, data: DataSelection, weights: LabelWeights, tally: Tally, *, negatives: bool = True
) -> Iterator[tuple[JudgedLog, Example]]:
    """The logs that are examples, oldest first; counts the others. ``negatives`` is as in ``label``."""
    tally.ignored["logs replaced by another agent's with the same log_id"] += folder.replaced
    for judged in folder.logs:
        if not data.in_range(judged.log.occurred_at):
            tally.left_out["outside the date range"] += 1
        elif data.agents is not None and judged.log.agent_id not in data.agents:
            tally.left_out["another agent"] += 1
        else:
            tally.ignored["verdicts dated more than a day before their log"] += judged.ignores_feedback
            if (labelled := label(judged, weights, negatives=negatives)) is None:
                tally.left_out["no label"] += 1
            elif (example := without_deleted(labelled, folder)) is None:
                tally.left_out["document deleted"] += 1
            else:
                yield judged, example


def count_too_old(view: PartitionView, folders: Collection[str] | None) -> Counter[str]:
    """The logs that were too old when they arrived, also of folders that have nothing else: they may be gone."""
    selected = view.folder_ids() if folders is None else set(folders)
    return Counter({TOO_OLD: sum(map(view.too_old, selected))})
