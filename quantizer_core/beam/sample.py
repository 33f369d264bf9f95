"""A choice of records that depends on the records alone, as a Beam transform."""

from __future__ import annotations

from collections.abc import Iterable

import apache_beam as beam

from quantizer_core.sample import Hashed, SmallestHashes


class SampleExamples(beam.PTransform):
    """PCollection of bytes → ``count`` of its records (all, if there are fewer or ``count`` is 0).

    They are those of the smallest SHA-256 hash: a random choice that depends on the records alone, not on their order,
    the sharding or the runner. The worker that merges holds about twice ``count`` records.
    """

    def __init__(self, count: int):
        super().__init__()
        self._count = count

    def expand(self, records: beam.PCollection[bytes]) -> beam.PCollection[bytes]:
        if not self._count:
            return records
        return (
            records
            # With a default, Beam would hand all that was chosen on as one side input.
            | "Smallest" >> beam.CombineGlobally(self.combine_fn()).without_defaults()
            | "Records" >> beam.FlatMap(lambda chosen: [record for _, record in chosen])
        )

    def combine_fn(self) -> beam.CombineFn:
        """Returns what chooses the records: PCollection → one sorted list of (hash, record)."""
        return _Smallest(self._count)


class _Smallest(beam.CombineFn):
    """Keeps the records of the smallest hashes, as sorted (hash, record) pairs."""

    def __init__(self, count: int):
        self._count = count

    def create_accumulator(self) -> SmallestHashes:
        return SmallestHashes(self._count)

    def add_input(self, kept: SmallestHashes, record: bytes) -> SmallestHashes:
        kept.add(record)
        return kept

    def merge_accumulators(self, accumulators: Iterable[SmallestHashes]) -> SmallestHashes:
        merged = SmallestHashes(self._count)
        for kept in accumulators:  # which may be as many as there were bundles, each with its records
            for digest, record in kept.chosen():
                merged.add(record, digest)
        return merged

    def compact(self, kept: SmallestHashes) -> SmallestHashes:
        return SmallestHashes(self._count, kept.chosen())

    def extract_output(self, kept: SmallestHashes) -> list[Hashed]:
        return kept.chosen()
