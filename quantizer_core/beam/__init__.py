"""The only Beam code of the core: calibration and evaluation as transforms, and what goes in and comes out.

Everything that a worker needs is here: it has to have ``quantizer_core``, but neither TFX nor ``components``. A worker
that first imports TensorFlow for this package runs it with oneDNN, unless its environment says otherwise.
"""

# ruff: noqa: E402 - TensorFlow reads what is asked for here when the modules below import it.
from quantizer_core.onednn import use_onednn

use_onednn()

from quantizer_core.beam.files import ReadRecords, WriteOne, read_one
from quantizer_core.beam.runs import Calibrate, Evaluate
from quantizer_core.beam.sample import SampleExamples

__all__ = ["Calibrate", "Evaluate", "ReadRecords", "SampleExamples", "WriteOne", "read_one"]
