"""TFX components: ``Freezer`` (Model → FrozenGraph), ``GraphImporter`` (.pb → FrozenGraph) and ``Quantizer``.

The artifact types stand here because a step on Kubeflow looks them up by ``TYPE_NAME`` as an import path.
"""

from components.artifacts import CalibrationRanges, FrozenGraph, QuantizationEvaluation

__all__ = ["CalibrationRanges", "FrozenGraph", "QuantizationEvaluation"]
