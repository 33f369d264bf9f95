"""Reading examples for a graph: decode, gather into batches, and keep account of the records that cannot be used."""

from __future__ import annotations

import collections
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from quantizer_core.errors import DataError


class Example(Protocol):
    """A decoded example: ``quantizer_core.preprocessing.decoder.DecodedExample``."""

    @property
    def feeds(self) -> dict[str, np.ndarray]: ...

    @property
    def label(self) -> int | None: ...


class Decoder(Protocol):
    """What turns serialized examples into graph inputs: ``quantizer_core.preprocessing.decoder.ExampleDecoder``."""

    def decode(self, serialized: bytes) -> Example: ...


@dataclasses.dataclass(frozen=True)
class ReadCounts:
    """How many records were used and how many not, and why; the neutral element of ``merge`` is the empty one.

    Attributes:
      read: records that were used.
      skipped: records that were not.
      reasons: kind of fault (see ``DataError.reason``) → number of records skipped for it.
      messages: kind of fault → what was said of one of these records: the first in alphabetical order, so that it does
        not depend on the order of the records. One a kind: memory does not grow with the number of bad records.
    """

    read: int = 0
    skipped: int = 0
    reasons: Mapping[str, int] = dataclasses.field(default_factory=dict)
    messages: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("reasons", "messages"):
            object.__setattr__(self, name, dict(sorted(getattr(self, name).items())))

    def merge(self, other: ReadCounts) -> ReadCounts:
        """Returns the counts of both sets of records together: exact, associative and commutative."""
        reasons = collections.Counter(self.reasons)
        reasons.update(other.reasons)
        messages = dict(self.messages)
        for reason, message in other.messages.items():
            messages[reason] = min(message, messages.get(reason, message))
        return ReadCounts(self.read + other.read, self.skipped + other.skipped, reasons, messages)

    @property
    def total(self) -> int:
        """Number of records, used or not."""
        return self.read + self.skipped

    def facts(self, stage: str) -> dict[str, int]:
        """Returns how many examples a stage used and skipped, and skipped for each kind of fault."""
        reasons = {f"{stage}_skipped_{reason}": count for reason, count in self.reasons.items()}
        return {f"{stage}_examples": self.read, f"{stage}_skipped": self.skipped, **reasons}

    def warnings(self, stage: str) -> list[str]:
        """Returns a sentence for each kind of fault for which a stage skipped examples."""
        return [
            f"{stage}: {count} of {self.total} examples skipped, for example: {self.messages[reason]}"
            for reason, count in self.reasons.items()
        ]

    def to_bytes(self) -> bytes:
        """Returns a canonical form: equal counts give equal bytes."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ReadCounts:
        """Reads ``to_bytes``'s form."""
        return cls(**json.loads(data))

    def check(self, max_bad_fraction: float, purpose: str, expected: int | None = None) -> None:
        """Makes sure that there were records, that all came through, and that not too many are unusable.

        Args:
          max_bad_fraction: largest share of unusable records to accept.
          purpose: what the records are for.
          expected: how many records there were, where that was counted by other means.

        Raises:
          DataError: if there were no records, none could be used, or more than ``max_bad_fraction`` of them could not
            (it gives the most frequent reason), or there are more or fewer than ``expected``.
        """
        total = self.total
        if expected is not None and total != expected:
            raise DataError(
                f"of {expected} examples for {purpose}, {total} came through: the Beam runner lost or repeated some; "
                "see its log, and run the step again"
            )
        if not total:
            raise DataError(f"there are no examples for {purpose}: the input is empty")
        if self.read and self.skipped <= max_bad_fraction * total:
            return
        reason, count = max(self.reasons.items(), key=lambda item: (item[1], item[0]))
        allowed = f", more than max_bad_fraction={max_bad_fraction:g} allows" if self.read else ""
        raise DataError(
            f"{self.skipped} of {total} examples for {purpose} cannot be used{allowed}; "
            f"most often ({count} times): {self.messages.get(reason, reason)}"
        )


@dataclasses.dataclass(frozen=True)
class Work:
    """What it took to put records through a graph: it depends on how they are spread over workers and on the machine.

    It goes with a run, but is no part of its result: runs that differ in it alone are equal.

    Attributes:
      batches: number of batches run.
      microseconds: time that workers spent in running them, added up over all workers.
      records: how many records there were before they were spread over workers; None where no one counted.
    """

    batches: int = 0
    microseconds: int = 0
    records: int | None = None

    def merge(self, other: Work) -> Work:
        """Returns the work on both sets of records: exact, associative and commutative."""
        counted = [work.records for work in (self, other) if work.records is not None]
        return Work(
            self.batches + other.batches, self.microseconds + other.microseconds, sum(counted) if counted else None
        )


class BatchReader:
    """Decodes records, hands them on in batches and counts; a record that fails anywhere is skipped, never its batch.

    Args:
      decoder: decodes one record, raising DataError if it is bad.
      consume: takes a batch of 1 to ``batch_size`` examples; if it raises DataError it must have had no effect, and is
        called again for each example by itself.
      batch_size: examples in a full batch.
      on_read: called with each record that was read and consumed without fault, and what it was decoded to.

    Attributes:
      work: batches consumed so far and the time that it took.
    """

    def __init__(
        self,
        decoder: Decoder,
        consume: Callable[[Sequence[Example]], None],
        batch_size: int,
        on_read: Callable[[bytes, Example], None] | None = None,
    ):
        self._decoder = decoder
        self._consume = consume
        self._on_read = on_read
        self._batch_size = batch_size
        self.work = Work()
        self._reset()

    def _reset(self) -> None:
        self._batch: list[tuple[bytes, Example]] = []
        self._read = 0
        self._skipped = ReadCounts()

    def add(self, serialized: bytes) -> None:
        """Takes one record; runs a batch when it is full."""
        try:
            self._batch.append((serialized, self._decoder.decode(serialized)))
        except DataError as error:
            self._skip(error, "not_preprocessed")
            return
        if len(self._batch) == self._batch_size:
            self._run()

    def finish(self) -> ReadCounts:
        """Runs what is left in the last batch; returns the counts since the last ``finish`` and starts anew."""
        self._run()
        counts = ReadCounts(self._read).merge(self._skipped)
        self._reset()
        return counts

    def _skip(self, error: DataError, reason: str) -> None:
        reason = error.reason or reason
        self._skipped = self._skipped.merge(ReadCounts(0, 1, {reason: 1}, {reason: str(error)}))

    def _run(self) -> None:
        batch, self._batch = self._batch, []
        if not batch:
            return
        started = time.perf_counter_ns()
        try:
            self._consume([example for _, example in batch])
            spent = (time.perf_counter_ns() - started) // 1000
            self.work = self.work.merge(Work(1, spent))
            self._read += len(batch)
            if self._on_read is not None:
                for record, example in batch:
                    self._on_read(record, example)
        except DataError as error:
            if len(batch) == 1:
                self._skip(error, "refused_by_graph")
                return
            for pair in batch:
                self._batch = [pair]
                self._run()


def read_all(
    reader: BatchReader, examples: Iterable[bytes], on_example: Callable[[int], None] | None = None
) -> ReadCounts:
    """Puts all records through a reader; ``on_example`` is called with the number of records so far."""
    for number, serialized in enumerate(examples, 1):
        reader.add(serialized)
        if on_example is not None:
            on_example(number)
    return reader.finish()
