"""Where a model comes from, as ML Metadata records it: the steps that made it, and what they read."""

from quantizer_core.lineage.answers import answers, quantizer_answers
from quantizer_core.lineage.records import Artifact, Lineage, Step
from quantizer_core.lineage.store import trace

__all__ = ["Artifact", "Lineage", "Step", "answers", "quantizer_answers", "trace"]
