"""The Quantizer's parameters as checked data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from quantizer_core.config import QuantizationConfig
from quantizer_core.errors import ConfigError, nearest
from quantizer_core.evaluation.judge import METRICS

_METRICS_WITH_LABELS = ("top1", "top5")

_Number = TypeVar("_Number", int, float)


@dataclasses.dataclass(frozen=True)
class Parameters:
    """What ``exec_properties`` says, parsed and checked once; the fields are those of ``Quantizer``.

    Runners hand values on in forms of their own (Kubeflow gives floats for integers), so numbers are converted.
    """

    config: QuantizationConfig
    calibration_split: str
    evaluation_split: str
    num_calibration_examples: int
    num_evaluation_examples: int
    metric: str
    max_drop: float
    core_version: str

    def __post_init__(self) -> None:
        for name in ("calibration_split", "evaluation_split"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty; name a split of the examples")
        for name in ("num_calibration_examples", "num_evaluation_examples"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be 0 (all) or more, not {getattr(self, name)}")
        if self.metric not in METRICS:
            raise ConfigError(
                f"metric is {self.metric!r}{nearest(self.metric, METRICS)}; choose one of {', '.join(METRICS)}"
            )
        if not 0 <= self.max_drop <= 1:
            raise ConfigError(f"max_drop must lie in [0, 1] (0.01 is one point), not {self.max_drop!r}")
        if self.metric in _METRICS_WITH_LABELS and not self.config.preprocess.label_key:
            raise ConfigError(
                f"metric {self.metric!r} needs labels: give preprocess.label_key, or choose the metric 'agreement'"
            )

    @classmethod
    def from_exec_properties(cls, values: Mapping[str, Any]) -> Parameters:
        """Reads TFX's ``exec_properties``.

        Raises:
          ConfigError: if a value is missing or outside its domain.
        """
        try:
            return cls(
                config=QuantizationConfig.from_json(values["quantization_config"]),
                calibration_split=values["calibration_split"],
                evaluation_split=values["evaluation_split"],
                num_calibration_examples=_number(values, "num_calibration_examples", int),
                num_evaluation_examples=_number(values, "num_evaluation_examples", int),
                metric=values["metric"],
                max_drop=_number(values, "max_drop", float),
                core_version=values["core_version"],
            )
        except KeyError as error:
            raise ConfigError(f"the Quantizer's parameter {error} is missing") from None


def _number(values: Mapping[str, Any], name: str, kind: type[_Number]) -> _Number:
    try:
        return kind(values[name])
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be a number, not {values[name]!r}") from None
