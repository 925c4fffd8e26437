"""The promotion gate: a model is promoted if its nDCG gain over the baseline is positive and significant."""

from collections.abc import Sequence

import numpy as np

from foldtune.events import GateVerdict
from trainers.evaluation.metrics import Evaluation

BOOTSTRAP_SAMPLES = 2_000
# With fewer groups of questions the bootstrap interval is itself a guess.
MIN_GROUPS = 20
# How far below zero the interval of a gain larger than this may reach. Such a gain is promoted although the last
# hundredth of nDCG is uncertain: the next round of logs corrects it, and a model that is never replaced never improves.
# A smaller gain must be significant, or every retraining would be another coin toss.
TOLERANCE = 0.01


def gate(
    before: Evaluation,
    after: Evaluation,
    seed: int,
    baseline: str = "the base model",
    refusals: Sequence[str] = (),
) -> GateVerdict:
    """Decide on promotion by the mean nDCG@10 gain over ``baseline`` and the lower bound of its 95% interval.

    ``refusals`` are other reasons against promotion.
    """
    gain = float((after.ndcg - before.ndcg).mean())
    low, high = gain_interval(before, after, seed)
    groups = len(np.unique(before.groups))
    numbers = f"nDCG@10 {before.ndcg.mean():.4f} → {after.ndcg.mean():.4f} on {len(before.ndcg)} held-out questions"
    interval = f"95% interval of the gain {low:+.4f} to {high:+.4f}"
    reasons: list[str] = []
    if groups < MIN_GROUPS:
        reasons.append(f"{groups} held-out groups of questions are too few; at least {MIN_GROUPS} are required")
    if gain <= 0:
        reasons.append(f"not better than {baseline}: {numbers}")
    elif low < (bound := -TOLERANCE if gain > TOLERANCE else 0.0):
        reasons.append(f"the gain may be chance: {numbers}, {interval}, its lower end is below {bound:+.2f}")
    reasons += refusals
    promote = not reasons
    if promote:
        reasons.append(f"better than {baseline}: {numbers}, {interval}")
    return GateVerdict(promote=promote, reasons=tuple(reasons), ndcg_gain=gain, ndcg_gain_interval=(low, high))


def gain_interval(before: Evaluation, after: Evaluation, seed: int) -> tuple[float, float]:
    """95% interval of the mean nDCG gain by a paired cluster bootstrap: near-duplicate questions are drawn together."""
    gains = after.ndcg - before.ndcg
    _, group = np.unique(before.groups, return_inverse=True)
    sums, sizes = np.bincount(group, weights=gains), np.bincount(group)
    generator = np.random.default_rng(seed)
    means = np.empty(BOOTSTRAP_SAMPLES)
    for sample in range(BOOTSTRAP_SAMPLES):
        drawn = generator.integers(len(sums), size=len(sums))
        means[sample] = sums[drawn].sum() / sizes[drawn].sum()
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
