"""The reader of a command's log: every record, in whatever pieces it comes and whatever stands around it."""

from __future__ import annotations

import base64
import tracemalloc

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.calibration.log import LogReader, Record
from quantizer_core.errors import CommandError


def record(name: str, *arrays: np.ndarray, examples: int = 1) -> bytes:
    parts = [
        base64.urlsafe_b64encode(tf.make_tensor_proto(array).SerializeToString()).rstrip(b"=") for array in arrays
    ]  # fmt: skip
    payload = b".".join(parts)
    what = f"range {name} [-1.5,2e+00]" if name else "inputs"
    return f"#quantizer {what} {examples} {len(payload)} ".encode() + payload + b"#"


def read(log: bytes, size: int = 1 << 20) -> tuple[list[Record], list[str]]:
    records: list[Record] = []
    lines: list[str] = []
    reader = LogReader(records.append, lines.append)
    for start in range(0, len(log), size):
        reader.feed(log[start : start + size])
    reader.finish()
    return records, lines


LOG = (
    b"starting\n"
    + record("a/b", np.float32([[1], [2]]), np.uint16([7]), examples=3)
    + b"\n 10%|#    \r 20%|##   "
    + record("", np.array([b"\0bytes\0", b""], object))
    + record("c:1", np.zeros((2, 0), np.float32))
    + b"\n\ndone #quantizer and #quantizer range x\nlast"
)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 10_000])
def test_records_and_lines_come_out_however_the_log_is_cut(size: int) -> None:
    records, lines = read(LOG, size)
    assert [(found.tensor, found.examples) for found in records] == [("a/b", 3), ("", 1), ("c:1", 1)]
    assert records[0].arrays[0].tolist() == [[1], [2]] and records[0].arrays[1].dtype == np.uint16
    assert records[1].arrays[0].tolist() == [b"\0bytes\0", b""] and records[2].arrays[0].shape == (2, 0)
    assert lines == ["starting", " 10%|#", " 20%|##", "done #quantizer and #quantizer range x", "last"]


@pytest.mark.filterwarnings("ignore:Unexpected end-group tag")
@pytest.mark.parametrize(
    ("log", "message"),
    [
        (record("a", np.zeros(9))[:-20], "ends amid a record of 'a'"),
        (record("a", np.zeros(9))[:-9] + b"hello\n" + record("a", np.zeros(9))[-9:], "damaged record of 'a'"),
        (record("a", np.zeros(9)).replace(b" C", b" !", 1), "damaged record of 'a'"),
        (b"#quantizer range a [0,1] 1 4 AAAA#", "damaged record of 'a'"),
    ],
)
def test_damage_is_an_error(log: bytes, message: str) -> None:
    with pytest.raises(CommandError, match=message):
        read(log)


def test_memory_does_not_grow_with_the_log() -> None:
    piece = b"progress without an end " * 4000 + record("a", np.zeros(20_000, np.float32)) + b"\n" + b"line\n" * 4000
    count = 0

    def tally(found: Record) -> None:
        nonlocal count
        count += len(found.arrays[0]) == 20_000

    reader = LogReader(tally, lambda line: None)
    reader.feed(piece)
    tracemalloc.start()
    for _ in range(80):  # 24 MB
        reader.feed(piece)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert count == 81 and peak < 8 * len(piece) < 2_000_000


@pytest.mark.parametrize("rest", [b"", b"#", b"#quantiz"])
def test_a_line_is_there_as_soon_as_it_is_whole(rest: bytes) -> None:
    """That of a command which goes silent then, say; what may be the beginning of a record waits."""
    lines: list[str] = []
    reader = LogReader(lambda record: None, lines.append)
    reader.feed(b"waiting for the lock\n" + rest)
    assert lines == ["waiting for the lock"]
    reader.feed(b" done\n")
    assert lines == ["waiting for the lock", rest.decode() + " done"]
