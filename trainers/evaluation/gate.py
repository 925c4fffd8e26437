"""The promotion gate: a model is promoted if its nDCG gain over the baseline is worth a new index, and no chance."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from foldtune.events import GateVerdict
from trainers.evaluation.metrics import Evaluation, Floats
from trainers.model.tokens import Indices

SAMPLES = 2_000
LEVELS = (0.025, 0.975)
# With fewer groups of questions only gains that no training reaches are more than chance.
MIN_GROUPS = 20


class Interval(NamedTuple):
    """95% interval of a mean."""

    low: float
    high: float


def gate(
    before: Evaluation,
    after: Evaluation,
    seed: int,
    *,
    min_gain: float,
    baseline: str = "the base model",
    refusals: Sequence[str] = (),
) -> GateVerdict:
    """Decide on promotion by the mean nDCG@10 gain over ``baseline``: at least ``min_gain``, and its 95% interval above
    zero. Too few questions are a verdict of their own, which says neither better nor worse.

    ``refusals`` are other reasons against promotion.
    """
    gain = float((after.ndcg - before.ndcg).mean())
    interval = gain_interval(before, after, seed)
    groups = len(np.unique(before.groups))
    numbers = (
        f"nDCG@10 {before.ndcg.mean():.4f} → {after.ndcg.mean():.4f} on {len(before.ndcg)} held-out questions, "
        f"95% interval of the gain {interval.low:+.4f} to {interval.high:+.4f}"
    )
    if groups < MIN_GROUPS:
        outcome = "too_few_questions"
        told = f"too few questions to tell: {groups} held-out groups of questions, at least {MIN_GROUPS} are required"
    elif gain <= 0:
        outcome, told = "not_better", f"not better than {baseline}"
    elif interval.low <= 0:
        outcome, told = "chance", f"the gain over {baseline} may be chance: its interval is not above zero"
    elif gain < min_gain:
        outcome, told = "too_small", f"the gain over {baseline} is less than trainer.min_gain, {min_gain}"
    else:
        outcome, told = ("refused" if refusals else "better"), f"better than {baseline}"
    promote = outcome == "better"
    # The gain is no reason against a model that is refused for another one.
    reasons = (*([] if outcome == "refused" else [f"{told}: {numbers}"]), *refusals)
    return GateVerdict(promote=promote, outcome=outcome, reasons=reasons, ndcg_gain=gain, ndcg_gain_interval=interval)


def gain_interval(before: Evaluation, after: Evaluation, seed: int) -> Interval:
    """95% interval of the mean nDCG gain; near-duplicate questions are drawn together."""
    return mean_interval(after.ndcg - before.ndcg, before.groups, seed)


def mean_interval(values: Floats, groups: Indices, seed: int) -> Interval:
    """95% interval of the mean of ``values`` ``[n]``; those of one of the ``groups`` ``[n]`` are not independent.

    The outer ends of two intervals, each of which is too narrow where the other is not: means of random subsets
    (Hartigan 1969) hold exactly for any number of symmetric values, most of which may be zero, and the bootstrap
    (BCa, Efron 1987) allows for many small gains beside a few large losses.
    """
    _, group = np.unique(groups, return_inverse=True)
    sums: Floats = np.bincount(group, weights=values).astype(np.float64)
    sizes: Indices = np.bincount(group).astype(np.int64)
    low, high = _subset_interval(sums, sizes, np.random.default_rng(seed))
    if len(sums) > 1:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            # Equal values have no interval of this kind: it is NaN.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            bootstrap = stats.bootstrap(
                (sums, sizes),
                lambda sums, sizes, axis: sums.sum(axis) / sizes.sum(axis),
                paired=True,
                vectorized=True,
                n_resamples=SAMPLES,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        low, high = np.fmin(low, bootstrap.low), np.fmax(high, bootstrap.high)
    return Interval(float(low), float(high))


def _subset_interval(sums: Floats, sizes: Indices, generator: np.random.Generator) -> Interval:
    """Quantiles of the mean of random subsets of groups: what flipping the signs of some groups leaves plausible."""
    drawn = generator.integers(2, size=(SAMPLES, len(sums)), dtype=np.uint8).astype(np.float32)
    totals, counts = drawn @ sums, drawn @ sizes
    with np.errstate(invalid="ignore"):
        # Gains that cancel out leave a rest of the order of 1e-17, which is not above zero.
        means = np.round(totals / counts, 12)
    # An empty subset allows for any mean; and of equal means none is passed over, as between two of them it would be.
    low = np.quantile(np.where(counts > 0, means, -1.0), LEVELS[0], method="lower")
    high = np.quantile(np.where(counts > 0, means, 1.0), LEVELS[1], method="higher")
    return Interval(float(low), float(high))
