"""The gate: from counts to a verdict with its reason."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from quantizer_core.errors import ConfigError, DataError, nearest
from quantizer_core.evaluation.counts import EvaluationCounts

# Room for the rounding of drop and max_drop: a drop of exactly one point must pass max_drop=0.01.
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class EvaluationResult:
    """A verdict on an INT8 graph and the figures behind it.

    Attributes:
      blessed: whether it may be deployed.
      reason: one sentence on why, or why not.
      metric: a key of ``METRICS``.
      fp32, int8: the metric of the two graphs.
      drop: fp32 - int8.
      max_drop: the largest drop allowed.
      agreement: share of the examples to which INT8 gives FP32's class; NaN if the output holds no classes.
      mcnemar_p: two-sided p-value of McNemar's exact test on the labelled examples: how likely a difference in
        accuracy as large as this is by chance; NaN without labels.
      relative_error: mean relative error of the outputs; NaN if no example could be measured.
      divergence: mean Kullback-Leibler divergence of INT8's classes from FP32's, in nats; it moves less by chance than
        agreement does. NaN if the output holds no classes.
      num_examples: number of examples compared.
      facts: whatever else is known about the run: numbers and strings.
    """

    blessed: bool
    reason: str
    metric: str
    fp32: float
    int8: float
    drop: float
    max_drop: float
    agreement: float
    mcnemar_p: float
    relative_error: float
    divergence: float
    num_examples: int
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def to_json(self) -> str:
        """Returns JSON with sorted keys; NaN becomes null."""
        values = dataclasses.asdict(self)
        plain = {
            key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()
        }
        return json.dumps(plain, indent=2, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> EvaluationResult:
        """Reads ``to_json``'s form; raises DataError if it is something else."""
        try:
            values: dict[str, Any] = json.loads(text)
            values |= {key: math.nan for key, value in values.items() if value is None}
            return cls(**values)
        except (ValueError, TypeError, AttributeError) as error:
            raise DataError(f"this is no evaluation result: {error}") from None


Figures = Callable[[EvaluationCounts], tuple[float, float]]


def _labelled(field: str) -> Figures:
    def figures(counts: EvaluationCounts) -> tuple[float, float]:
        _need_classes(counts)
        if not counts.labelled:
            raise DataError(
                "the examples carry no labels, so accuracy cannot be compared: name the label's feature (label_key), "
                "or use the metric 'agreement'"
            )
        return getattr(counts, f"fp32_{field}") / counts.labelled, getattr(counts, f"int8_{field}") / counts.labelled

    return figures


def _agreement(counts: EvaluationCounts) -> tuple[float, float]:
    _need_classes(counts)
    return 1.0, counts.agreement / counts.classified


def _similarity(counts: EvaluationCounts) -> tuple[float, float]:
    error = counts.relative_error()
    if error is None:
        raise DataError("no output of the graph holds finite floating-point numbers that could be compared")
    return 1.0, 1.0 - error


def _need_classes(counts: EvaluationCounts) -> None:
    if not counts.classified:
        raise DataError(
            "no output of the graph is a vector of class scores for each example: use the metric 'similarity', which "
            "compares outputs of any shape"
        )


#: Metric → what it makes of the counts: the figure of FP32 and that of INT8, 1 being best.
METRICS: dict[str, Figures] = {
    "top1": _labelled("top1"),
    "top5": _labelled("top5"),
    "agreement": _agreement,
    "similarity": _similarity,
}


def judge(
    counts: EvaluationCounts,
    *,
    metric: str = "top1",
    max_drop: float = 0.01,
    facts: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Decides whether an INT8 graph is good enough.

    It is blessed if no output turned to NaN or infinity and the metric falls by no more than ``max_drop``.

    Args:
      counts: the comparison of the two graphs.
      metric: ``top1`` and ``top5`` are accuracies on labelled examples; ``agreement`` is the share of examples to
        which INT8 gives FP32's class; ``similarity`` is 1 minus the mean relative error of the outputs.
      max_drop: largest drop allowed, absolute: 0.01 is one point.
      facts: to be kept with the result.

    Raises:
      ConfigError: if the metric is not known or ``max_drop`` not in [0, 1].
      DataError: if there are no examples, or the metric cannot be had from them.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric is {metric!r}{nearest(metric, METRICS)}; choose one of {', '.join(METRICS)}")
    if not counts.examples:
        raise DataError("there are no examples to judge the INT8 graph by")
    # Without a finite output nothing else can be said, for any metric.
    fp32, int8 = (1.0, 0.0) if counts.nonfinite and metric == "similarity" else METRICS[metric](counts)
    error, divergence = counts.relative_error(), counts.divergence()
    return decide(
        metric,
        fp32,
        int8,
        max_drop,
        examples=counts.examples,
        nonfinite=counts.nonfinite,
        agreement=counts.agreement / counts.classified if counts.classified else math.nan,
        mcnemar_p=mcnemar(counts.only_fp32, counts.only_int8) if counts.labelled else math.nan,
        relative_error=math.nan if error is None else error,
        divergence=math.nan if divergence is None else divergence,
        doubt=_guessed(counts, metric),
        facts=facts,
    )


def _guessed(counts: EvaluationCounts, metric: str) -> str:
    """Returns a sentence on an accuracy of FP32 that guessing among the classes would reach, "" where it is better.

    That is so where the chance to be right so often by guessing is above 5 % (one-sided binomial test).
    """
    tries = {"top1": 1, "top5": 5}.get(metric, 0)
    if not tries or counts.classes <= tries:
        return ""
    right, total, chance = getattr(counts, f"fp32_{metric}"), counts.labelled, tries / counts.classes
    if right > total * chance and 1 - _binomial_below(right, total, chance) <= 0.05:
        return ""
    return (
        f" FP32 itself is right on {right} of {total}, no more than guessing among {counts.classes} classes would be: "
        "check the labels, label_offset and the preprocessing."
    )


def _binomial_below(count: int, total: int, chance: float) -> float:
    """Returns the probability of fewer than ``count`` successes in ``total`` trials of probability ``chance``."""
    log = math.lgamma(total + 1)
    terms = (
        log - math.lgamma(i + 1) - math.lgamma(total - i + 1) + i * math.log(chance) + (total - i) * math.log1p(-chance)
        for i in range(count)
    )
    return math.fsum(math.exp(term) for term in terms)


def decide(
    metric: str,
    fp32: float,
    int8: float,
    max_drop: float,
    *,
    examples: int,
    nonfinite: int,
    agreement: float = math.nan,
    mcnemar_p: float = math.nan,
    relative_error: float = math.nan,
    divergence: float = math.nan,
    doubt: str = "",
    facts: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Returns the result with these figures: whether the INT8 graph is blessed, and the sentence on why or why not.

    Args:
      metric, fp32, int8, max_drop, agreement, mcnemar_p, relative_error, divergence, facts: see ``EvaluationResult``.
      examples: number of examples compared.
      nonfinite: of these, the ones on which INT8 gives NaN or infinity where FP32 does not: one is too many.
      doubt: a sentence, with a space before it, on why the figures may say little; goes with the reason.

    Raises:
      ConfigError: if ``max_drop`` is no share.
    """
    if not 0 <= max_drop <= 1:
        raise ConfigError(f"max_drop must lie in [0, 1] (0.01 is one point), not {max_drop!r}")
    drop = fp32 - int8
    blessed = not nonfinite and drop <= max_drop + _EPSILON
    if fp32 < int8:
        figures = f"rises from {fp32:.2%} (FP32) to {int8:.2%} (INT8)"
    else:
        figures = f"falls from {fp32:.2%} (FP32) to {int8:.2%} (INT8)" if fp32 > int8 else f"stays at {fp32:.2%}"
    reason = (
        f"{metric} {figures} on {examples} examples: a drop of {100 * drop:.2f} points, "
        f"{'within' if blessed else 'more than'} the {100 * max_drop:.2f} allowed.{doubt}"
    )
    if nonfinite:
        reason = f"INT8 gives NaN or infinity on {nonfinite} of {examples} examples where FP32 does not."
    return EvaluationResult(
        blessed=blessed,
        reason=reason,
        metric=metric,
        fp32=fp32,
        int8=int8,
        drop=drop,
        max_drop=max_drop,
        agreement=agreement,
        mcnemar_p=mcnemar_p,
        relative_error=relative_error,
        divergence=divergence,
        num_examples=examples,
        facts=dict(facts or {}),
    )


def mcnemar(only_one: int, only_other: int) -> float:
    """Returns the two-sided p-value of McNemar's exact test from the examples that only one graph gets right.

    p = min(1, 2 · Σ_{i ≤ min(b, c)} C(b + c, i) / 2^(b + c)) (McNemar 1947, Psychometrika 12; the binomial form).
    """
    total, smaller = only_one + only_other, min(only_one, only_other)
    scale = math.lgamma(total + 1) - total * math.log(2)
    terms = (scale - math.lgamma(i + 1) - math.lgamma(total - i + 1) for i in range(smaller + 1))
    return min(1.0, 2 * math.fsum(math.exp(term) for term in terms))
