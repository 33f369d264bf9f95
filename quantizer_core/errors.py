"""The few kinds of error that the product raises: each names the thing at fault and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QuantizerError(Exception):
    """Base of every error raised on purpose; its text is fit to be shown to a user as it stands."""


class GraphError(QuantizerError):
    """A graph file cannot be read or written, is not frozen, or has a structure that cannot be handled."""


class UnknownNodeError(GraphError):
    """A node, tensor or op type was named that the graph does not hold."""


class ConfigError(QuantizerError):
    """An option is missing, contradicts another or has a value outside its domain."""


class DataError(QuantizerError):
    """Examples are missing, unreadable, of the wrong shape or dtype, or make the graph produce NaN or infinity.

    Attributes:
      reason: for an example that cannot be used: the kind of fault in a word or two (``missing_feature``), the same
        for all examples with this fault, which the text need not be; else "".
    """

    def __init__(self, *arguments: object, reason: str = ""):
        super().__init__(*arguments)
        self.reason = reason


class CommandError(QuantizerError):
    """A command that calibration runs cannot be started, fails, takes too long or prints no ranges."""


class MachineError(QuantizerError):
    """The processor, the TensorFlow build or its settings cannot run the INT8 kernels."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known name closest to ``name``, or ``""`` if none is close."""
    matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0.4)
    return f"; did you mean {matches[0]!r}?" if matches else ""
