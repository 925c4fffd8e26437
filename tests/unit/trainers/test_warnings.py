"""What a training is warned of in its status."""

import numpy as np
import pytest

from foldtune.events import FineTuneRequested, now
from foldtune.knobs import DatasetKnobs, TrainingKnobs, WeightKnobs
from tests.unit.trainers.conftest import example, make_tables
from trainers.data.dataset import Split, build_dataset
from trainers.loop.training import TrainingRecord
from trainers.pipeline import data_warnings, knob_warnings, training_warnings


def request(
    dataset: DatasetKnobs | None = None, training: TrainingKnobs | None = None, weights: WeightKnobs | None = None
) -> FineTuneRequested:
    return FineTuneRequested(
        request_id="r",
        model="m",
        requested_at=now(),
        dataset=dataset or DatasetKnobs(),
        training=training or TrainingKnobs(),
        weights=weights or WeightKnobs(),
    )


def parts(examples: int) -> Split:
    return Split(train=np.arange(examples), validation=np.arange(0), held_out=np.arange(0), judged=True)


def test_unsuitable_knobs_are_warned_about() -> None:
    assert knob_warnings(request(training=TrainingKnobs(batch_size=32, epochs=3)), parts(1_000)) == []
    larger, few = knob_warnings(request(training=TrainingKnobs(batch_size=64, epochs=3)), parts(20))
    assert larger == "training.batch_size 64 is larger than the 20 training examples"
    assert few.startswith("only 3 steps: fewer than 50")
    (cold,) = knob_warnings(request(weights=WeightKnobs(temperature=0.009)), parts(1_000))
    assert cold.startswith("weights.temperature 0.009 is below 0.01")
    (none,) = knob_warnings(request(dataset=DatasetKnobs(exclusion_threshold=0)), parts(1_000))
    assert none.startswith("dataset.exclusion_threshold 0 leaves no negatives")


@pytest.mark.parametrize(
    ("filled", "missing", "warned"),
    [
        (40, 0, []),
        (41, 0, ["41 of 400 hard negatives were not found and are replaced by easy ones"]),
        (0, 3, ["3 negatives are missing: too few of the sampled documents pass the filters"]),
    ],
)
def test_missing_negatives_are_warned_about(filled: int, missing: int, warned: list[str]) -> None:
    record = TrainingRecord(negatives=[{"hard_filled_with_easy": filled, "missing": missing}])
    assert training_warnings(record, request(dataset=DatasetKnobs(hard_negatives=4)), 100) == warned


def test_near_copies_of_positives_in_most_batches_are_warned_about() -> None:
    negatives = {"hard_filled_with_easy": 0, "missing": 0, "in_batch_near_positive_by_words": 10}
    assert training_warnings(TrainingRecord(negatives=[negatives]), request(), 100) == []
    record = TrainingRecord(negatives=[negatives | {"in_batch_near_positive_by_words": 11}])
    (warning,) = training_warnings(record, request(), 100)
    assert warning.startswith("11 pairs of a question and a near-copy of its positive")


@pytest.mark.parametrize(("same", "warned"), [(5, False), (6, True)])
def test_one_positive_for_most_questions_is_warned_about(same: int, warned: bool) -> None:
    rows = [example(f"question {index}", "d0" if index < same else f"d{index}") for index in range(10)]
    dataset = build_dataset(*make_tables(rows, {f"d{index}": f"text {index}" for index in range(10)}))
    warnings = data_warnings(dataset, parts(10))
    assert any("6 of 10 examples have the same passage" in warning for warning in warnings) == warned
