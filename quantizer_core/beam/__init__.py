"""The only Beam code of the core: calibration and evaluation as transforms, and what goes in and comes out.

Everything that a worker needs is here: it has to have ``quantizer_core``, but neither TFX nor ``components``.
"""

from quantizer_core.beam.files import ReadRecords, WriteOne, read_one
from quantizer_core.beam.runs import Calibrate, Evaluate
from quantizer_core.beam.sample import SampleExamples

__all__ = ["Calibrate", "Evaluate", "ReadRecords", "SampleExamples", "WriteOne", "read_one"]
