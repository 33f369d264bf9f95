"""Leaves the first kernels of a classifier FP32 where their rounding makes much of the predicted loss at little cost.

What is rounded early goes through every layer after it, and the first layers are the smallest part of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from quantizer_core.calibration.statistics import CalibrationStatistics
from quantizer_core.config import QuantizationConfig
from quantizer_core.lowering.parameters import WEIGHTED_FORMS
from quantizer_core.planning.make import make_plan
from quantizer_core.planning.plan import QuantizationPlan
from quantizer_core.planning.sensitivity import sensitivity
from quantizer_core.types import PreparedGraph

#: Predicted divergence, in nats, that is left as it is: some three or four in a hundred classes differ there.
TOLERATED = 0.004
#: Share of the multiplications that may stay FP32.
MOST_PRODUCTS = 0.1
#: Share of the predicted divergence that must go with them.
WORTH = 0.2


def first_in_float(
    prepared: PreparedGraph,
    statistics: CalibrationStatistics,
    plan: QuantizationPlan,
    examples: Sequence[Mapping[str, np.ndarray]],
    config: QuantizationConfig,
) -> dict[str, str]:
    """Returns the kernels at the graph's inputs that are better left FP32, and why; often none.

    Args:
      prepared, statistics, config: as for ``make_plan``.
      plan: the plan with all of them in INT8.
      examples: input name → array without batch dimension: what the loss is predicted on; not empty.
    """
    kernels = [node for node in plan.nodes if node.form in WEIGHTED_FORMS]
    most = _most(len(kernels))
    found = sensitivity(prepared, plan, examples) if most else None
    if found is None or sum(found.divergence.values()) <= TOLERATED:
        return {}
    total, work = sum(found.divergence.values()), sum(found.products.values())
    best: tuple[str, ...] = ()
    least = (1 - WORTH) * total
    for count in range(1, most + 1):
        first = tuple(node.name for node in kernels[:count])
        if sum(found.products.get(name, work) for name in first) > MOST_PRODUCTS * work:
            break
        others = make_plan(prepared, statistics, config, dict.fromkeys(first, "tried"))
        left = sum(cost for name, cost in found.divergence.items() if name in others.tensors)
        if left < least:
            best, least = first, left
    reason = f"in INT8 the first layers would make {1 - least / total:.0%} of the predicted loss of accuracy"
    return dict.fromkeys(best, reason)


def _most(kernels: int) -> int:
    """Returns how many of the kernels with weights may stay FP32: one in twenty, or two of twenty to forty."""
    return int(min(max(2, kernels / 20), kernels / 10))
