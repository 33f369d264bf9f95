"""Measurements of speed and size; never part of the tests."""

from quantizer_core.onednn import use_onednn

# Everything measured here, other tools too, runs on oneDNN, whatever the processor.
use_onednn()
