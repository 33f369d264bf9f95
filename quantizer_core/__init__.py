"""Turns a frozen FP32 TensorFlow graph into one of INT8 oneDNN kernels, and proves what that costs.

The public API, on one screen. Names are imported when first used, so that importing this package costs nothing
(TensorFlow takes seconds) and never needs Beam or TFX::

    import quantizer_core as qc

    config = qc.QuantizationConfig(outputs=("logits",), batch_size=32)
    prepared = qc.prepare(qc.load_graph("model.pb"), config)              # checks and FP32 rewrites
    run = qc.calibrate(prepared, examples, config)                        # what values each tensor takes
    conversion = qc.convert(prepared, run.statistics, config)             # INT8 graph and the plan behind it
    qc.save_graph(conversion.graph_def, "model_int8.pb")
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from quantizer_core.calibration.callback import calibrate_by_callback
    from quantizer_core.calibration.run import calibrate
    from quantizer_core.calibration.saved import SavedCalibration, load_calibration, save_calibration
    from quantizer_core.calibration.statistics import CalibrationStatistics
    from quantizer_core.config import PreprocessConfig, QuantizationConfig
    from quantizer_core.errors import (
        CommandError,
        ConfigError,
        DataError,
        GraphError,
        MachineError,
        QuantizerError,
        UnknownNodeError,
    )
    from quantizer_core.evaluation.judge import judge
    from quantizer_core.evaluation.layers import compare_layers
    from quantizer_core.evaluation.run import evaluate
    from quantizer_core.graph.files import freeze_saved_model, load_graph, save_graph
    from quantizer_core.graph.summarize import summarize_graph
    from quantizer_core.graph_converter import GraphConverter
    from quantizer_core.lowering.simulate import simulate
    from quantizer_core.planning.make import make_plan
    from quantizer_core.planning.plan import QuantizationPlan
    from quantizer_core.prepare import prepare
    from quantizer_core.quantize import convert, quantize
    from quantizer_core.version import VERSION

# Public name → the module that defines it.
_HOMES = {
    "CalibrationStatistics": "quantizer_core.calibration.statistics",
    "CommandError": "quantizer_core.errors",
    "ConfigError": "quantizer_core.errors",
    "DataError": "quantizer_core.errors",
    "GraphConverter": "quantizer_core.graph_converter",
    "GraphError": "quantizer_core.errors",
    "MachineError": "quantizer_core.errors",
    "PreprocessConfig": "quantizer_core.config",
    "QuantizationConfig": "quantizer_core.config",
    "QuantizationPlan": "quantizer_core.planning.plan",
    "QuantizerError": "quantizer_core.errors",
    "SavedCalibration": "quantizer_core.calibration.saved",
    "UnknownNodeError": "quantizer_core.errors",
    "VERSION": "quantizer_core.version",
    "calibrate": "quantizer_core.calibration.run",
    "calibrate_by_callback": "quantizer_core.calibration.callback",
    "compare_layers": "quantizer_core.evaluation.layers",
    "convert": "quantizer_core.quantize",
    "evaluate": "quantizer_core.evaluation.run",
    "freeze_saved_model": "quantizer_core.graph.files",
    "judge": "quantizer_core.evaluation.judge",
    "load_calibration": "quantizer_core.calibration.saved",
    "load_graph": "quantizer_core.graph.files",
    "make_plan": "quantizer_core.planning.make",
    "prepare": "quantizer_core.prepare",
    "quantize": "quantizer_core.quantize",
    "save_calibration": "quantizer_core.calibration.saved",
    "save_graph": "quantizer_core.graph.files",
    "simulate": "quantizer_core.lowering.simulate",
    "summarize_graph": "quantizer_core.graph.summarize",
}

__all__ = [
    "VERSION",
    "CalibrationStatistics",
    "CommandError",
    "ConfigError",
    "DataError",
    "GraphConverter",
    "GraphError",
    "MachineError",
    "PreprocessConfig",
    "QuantizationConfig",
    "QuantizationPlan",
    "QuantizerError",
    "SavedCalibration",
    "UnknownNodeError",
    "calibrate",
    "calibrate_by_callback",
    "compare_layers",
    "convert",
    "evaluate",
    "freeze_saved_model",
    "judge",
    "load_calibration",
    "load_graph",
    "make_plan",
    "prepare",
    "quantize",
    "save_calibration",
    "save_graph",
    "simulate",
    "summarize_graph",
]


class _Package(types.ModuleType):
    """Keeps ``quantizer_core.prepare`` and ``.quantize`` the functions once their modules of the same name are loaded.

    The import system sets each loaded submodule as an attribute of its package; for a public name that would put the
    module in the function's place.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value  # the next access finds it without coming here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
