"""EvaluationCounts: the comparison of two graphs as integers, which add up the same in any order."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence

import numpy as np

from quantizer_core.calibration.fixed_point import mean_of_limbs, to_limbs
from quantizer_core.errors import DataError

_LEAST = 1e-12


@dataclasses.dataclass(frozen=True)
class EvaluationCounts:
    """What FP32 and INT8 made of the same examples; the neutral element of ``merge`` is the empty one.

    The class of an example is the largest entry of the first output that is a vector of at least two numbers for each
    example (dimensions of size 1 apart); the first of equal entries. NaN and infinity are never right and never agree.

    Attributes:
      examples: number of examples run.
      classified: number of examples with such an output.
      agreement: number of classified examples to which INT8 gives FP32's class.
      classes: number of scores in that output, the most of any example.
      labelled: number of classified examples with a label.
      fp32_top1, fp32_top5, int8_top1, int8_top5: number of labelled examples whose label is (among) the best.
      both, only_fp32, only_int8: number of labelled examples with the right class in both, or only in one.
      nonfinite: number of examples in which an output of INT8 held NaN or infinity where FP32's did not.
      measured: number of examples in which all outputs were finite numbers.
      error_high, error_low: limbs (see calibration/fixed_point.py) of the sum, over the measured examples, of the
        relative error ‖int8 - fp32‖ / ‖fp32‖ of all floating-point outputs joined; 1 where INT8 gives an output
        another shape than FP32, as a detector that finds another number of boxes.
      compared: number of classified examples with finite scores.
      divergence_high, divergence_low: limbs of the sum over them of Σ p·ln(p / q), the Kullback-Leibler divergence in
        nats of INT8's distribution over the classes, q, from FP32's, p: the scores if FP32's are a distribution,
        else their softmax.
    """

    examples: int = 0
    classified: int = 0
    agreement: int = 0
    classes: int = 0
    labelled: int = 0
    fp32_top1: int = 0
    fp32_top5: int = 0
    int8_top1: int = 0
    int8_top5: int = 0
    both: int = 0
    only_fp32: int = 0
    only_int8: int = 0
    nonfinite: int = 0
    measured: int = 0
    error_high: int = 0
    error_low: int = 0
    compared: int = 0
    divergence_high: int = 0
    divergence_low: int = 0

    def merge(self, other: EvaluationCounts) -> EvaluationCounts:
        """Returns the counts over both sets of examples: exact, associative and commutative."""
        mine, others = dataclasses.asdict(self), dataclasses.asdict(other)
        sums = {name: value + others[name] for name, value in mine.items()}
        return EvaluationCounts(**{**sums, "classes": max(self.classes, other.classes)})

    def relative_error(self) -> float | None:
        """Returns the mean relative error of the outputs, None if no example was measured."""
        if not self.measured:
            return None
        return float(mean_of_limbs(np.array([self.error_high, self.error_low]), self.measured))

    def divergence(self) -> float | None:
        """Returns the mean divergence of INT8's classes from FP32's in nats, None if no example was compared."""
        if not self.compared:
            return None
        return float(mean_of_limbs(np.array([self.divergence_high, self.divergence_low]), self.compared))

    def to_bytes(self) -> bytes:
        """Returns a canonical form: equal counts give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> EvaluationCounts:
        """Reads ``to_bytes``'s form; raises DataError if it is damaged."""
        try:
            return cls(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DataError(f"these are no evaluation counts, or they are damaged: {error}") from None


def compare(fp32: Sequence[np.ndarray], int8: Sequence[np.ndarray], label: int | None) -> EvaluationCounts:
    """Counts one example.

    Args:
      fp32: the FP32 graph's outputs for the example.
      int8: the INT8 graph's outputs for it, of the same shapes unless the graph's shapes depend on values.
      label: index of the right class, or None.

    Raises:
      DataError: if the label is no index of the output.
    """
    fields = {"examples": 1}
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(fp32, int8, strict=True)]
    pairs = [(a, b) for a, b in pairs if np.issubdtype(a.dtype, np.floating)]
    if any(np.isfinite(a).all() and not np.isfinite(b).all() for a, b in pairs):
        fields["nonfinite"] = 1
    if pairs and all(np.isfinite(a).all() and np.isfinite(b).all() for a, b in pairs):
        fields |= _error(pairs)
    scores = next(((a.reshape(-1), b.reshape(-1)) for a, b in pairs if _is_vector(a)), None)
    if scores is not None:
        fields |= _classes(*scores, label)
    return EvaluationCounts(**fields)


def _is_vector(value: np.ndarray) -> bool:
    return [dim != 1 for dim in value.shape].count(True) == 1 and value.size > 1


def _error(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, int]:
    if any(a.shape != b.shape for a, b in pairs):
        return _measured(1.0)
    signal = np.concatenate([a.reshape(-1) for a, _ in pairs]).astype(np.float64)
    noise = np.concatenate([b.reshape(-1) for _, b in pairs]) - signal
    # Two silent outputs agree; noise on a silent output has no relative size: it counts as 100 %.
    size, error = float(np.linalg.norm(signal)), float(np.linalg.norm(noise))
    return _measured(error / size if size else float(error > 0))


def _measured(relative: float) -> dict[str, int]:
    high, low = to_limbs(np.array(relative))
    return {"measured": 1, "error_high": int(high), "error_low": int(low)}


def _classes(fp32: np.ndarray, int8: np.ndarray, label: int | None) -> dict[str, int]:
    finite = [bool(np.isfinite(scores).all() and scores.shape == fp32.shape) for scores in (fp32, int8)]
    agree = all(finite) and int(np.argmax(fp32)) == int(np.argmax(int8))
    fields = {"classified": 1, "agreement": int(agree), "classes": len(fp32)}
    if all(finite):
        high, low = to_limbs(np.array(divergence(fp32, int8)))
        fields |= {"compared": 1, "divergence_high": int(high), "divergence_low": int(low)}
    if label is None:
        return fields
    if not 0 <= label < len(fp32):
        raise DataError(
            f"label {label} is no index of the graph's output of {len(fp32)} classes; check label_key and label_offset",
            reason="label_out_of_range",
        )
    ranks = [_rank(scores, label) if ok else len(fp32) for scores, ok in zip((fp32, int8), finite, strict=True)]
    right, right_int8 = (rank == 0 for rank in ranks)
    return fields | {
        "labelled": 1,
        "fp32_top1": int(right),
        "int8_top1": int(right_int8),
        "fp32_top5": int(ranks[0] < 5 and finite[0]),
        "int8_top5": int(ranks[1] < 5 and finite[1]),
        "both": int(right and right_int8),
        "only_fp32": int(right and not right_int8),
        "only_int8": int(right_int8 and not right),
    }


def divergence(fp32: np.ndarray, int8: np.ndarray) -> float:
    """Returns the Kullback-Leibler divergence of INT8's distribution over the classes from FP32's, in nats.

    Args:
      fp32, int8: float [classes], finite: probabilities, or scores whose softmax is taken. Probabilities below 1e-12
        count as that.
    """
    p, q = (np.asarray(scores, np.float64) for scores in (fp32, int8))
    if p.min() < 0 or abs(p.sum() - 1) > 1e-3:
        p, q = (np.exp(scores - scores.max()) for scores in (p, q))
    p, q = (np.maximum(scores, _LEAST) for scores in (p, q))
    p, q = p / p.sum(), q / q.sum()
    return max(float(np.sum(p * np.log(p / q))), 0.0)


def _rank(scores: np.ndarray, label: int) -> int:
    """Returns how many classes come before the label; of equal scores the lower index comes first, as in argmax."""
    score = scores[label]
    return int(np.count_nonzero(scores > score) + np.count_nonzero(scores[:label] == score))
