"""Reads the records of an instrumented graph out of what a command prints, as it comes, whatever else that is."""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.framework import tensor_pb2

from quantizer_core.calibration.instrument import MARK
from quantizer_core.errors import CommandError

_MARK = MARK.encode()
_HEADING = re.compile(rb"#quantizer (?:range (\S+) \[\S+\]|(inputs)) (\d+) (\d+) ")
#: A heading is shorter than this; what is longer only looks like one.
_LONGEST_HEADING = 1 << 16
_PAYLOAD_BYTES = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_."
#: Text without a line's end is handed on in pieces of this size.
_LONGEST_LINE = 1 << 13
_LINE_END = re.compile(rb"[\r\n]+")


@dataclasses.dataclass(frozen=True)
class Record:
    """What one run of the graph printed of a watched tensor, or of its inputs.

    Attributes:
      tensor: the tensor's name; "" for the inputs.
      examples: how many examples the run had.
      arrays: what the payload holds (see ``quantizer_core.calibration.instrument``).
    """

    tensor: str
    examples: int
    arrays: tuple[np.ndarray, ...]


class LogReader:
    """Takes a log piece by piece; it remembers no more than the record and the line that are not complete yet.

    Args:
      on_record: called with each record.
      on_line: called with each other line that is not blank, as text without its end.
    """

    def __init__(self, on_record: Callable[[Record], None], on_line: Callable[[str], None]):
        self._on_record, self._on_line = on_record, on_line
        self._data = bytearray()
        self._line = bytearray()
        self._heading: re.Match[bytes] | None = None

    def feed(self, data: bytes) -> None:
        """Takes what came next.

        Raises:
          CommandError: if a record is damaged: something else was printed in its midst.
        """
        self._data += data
        while self._step():
            pass

    def finish(self, whole: bool = True) -> None:
        """Takes note that nothing more comes.

        Args:
          whole: False: the command failed, and no more of its last record is to be expected.

        Raises:
          CommandError: if the log is to be whole and a record has no end.
        """
        if self._heading is not None and not whole:
            return
        if self._heading is not None:
            raise CommandError(f"the command's log ends amid a record of {_name(self._heading)!r}: it was cut short")
        self._text(bytes(self._data) + b"\n")
        self._data.clear()

    def _step(self) -> bool:
        """Takes one record, or the text before one; returns whether there may be more to take."""
        if self._heading is not None:
            return self._payload(self._heading)
        start = self._data.find(_MARK)
        if start < 0:  # its end may be the beginning of a mark
            held = next(size for size in range(len(_MARK) - 1, -1, -1) if self._data.endswith(_MARK[:size]))
            self._take_text(len(self._data) - held)
            return False
        self._take_text(start)
        self._heading = _HEADING.match(bytes(self._data[:_LONGEST_HEADING]))
        if self._heading is None:
            if b"\n" not in self._data and len(self._data) < _LONGEST_HEADING:
                return False
            self._take_text(len(_MARK))  # it only looks like a record
        else:
            del self._data[: self._heading.end()]
        return True

    def _payload(self, heading: re.Match[bytes]) -> bool:
        size = int(heading[4])
        if len(self._data) <= size:
            return False
        payload = bytes(self._data[:size])
        if self._data[size : size + 1] != b"#" or payload.translate(None, _PAYLOAD_BYTES):
            raise _damaged(heading)
        del self._data[: size + 1]
        self._heading = None
        try:
            arrays = tuple(_array(part) for part in payload.split(b"."))
        except (ValueError, DecodeError, TypeError):
            raise _damaged(heading) from None
        self._on_record(Record((heading[1] or b"").decode(), int(heading[3]), arrays))
        return True

    def _take_text(self, size: int) -> None:
        if size > 0:
            self._text(bytes(self._data[:size]))
            del self._data[:size]

    def _text(self, data: bytes) -> None:
        self._line += data
        *lines, rest = _LINE_END.split(bytes(self._line))
        self._line = bytearray(rest)
        if len(self._line) > _LONGEST_LINE:
            lines.append(bytes(self._line))
            self._line.clear()
        for line in lines:
            if line.strip():
                self._on_line(line.decode("utf-8", errors="replace").rstrip())


def _array(part: bytes) -> np.ndarray:
    data = base64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    return np.asarray(tf.make_ndarray(tensor_pb2.TensorProto.FromString(data)))


def _name(heading: re.Match[bytes]) -> str:
    return (heading[1] or heading[2]).decode()


def _damaged(heading: re.Match[bytes]) -> CommandError:
    return CommandError(
        f"the command's log holds a damaged record of {_name(heading)!r}: something else was printed in its midst; let "
        "one process at a time run the graph, and nothing else print meanwhile"
    )
