"""A bounded choice of records that depends on the records alone: those of the smallest hashes."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping

import numpy as np

#: A record with its SHA-256 digest.
Hashed = tuple[bytes, bytes]

#: How many records of its examples calibration keeps, for weights and biases to be chosen on.
KEPT_RECORDS = 64


def digest_of(feeds: Mapping[str, np.ndarray]) -> bytes:
    """Returns a digest of what a graph is fed: the same whatever else the record holds and however it is written."""
    digest = hashlib.sha256()
    for name in sorted(feeds):
        value = np.asarray(feeds[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        for part in value.reshape(-1).tolist() if value.dtype == object else [value.tobytes()]:
            digest.update(part)
    return digest.digest()


class SmallestHashes:
    """Keeps the ``count`` records of the smallest SHA-256 digests: the same ones in any order and sharding.

    Memory is bounded by about twice ``count`` records.
    """

    def __init__(self, count: int, chosen: tuple[Hashed, ...] | list[Hashed] = ()):
        self.count = count
        self._chosen = list(chosen)
        self._largest: bytes | None = None  # of the digests, once the choice is full

    def wants(self, digest: bytes) -> bool:
        """Returns whether a record of this digest may be chosen: others need not be made to be added."""
        return self.count > 0 and (self._largest is None or digest <= self._largest)

    def add(self, record: bytes, digest: bytes | None = None) -> None:
        """Takes a record; ``digest`` is what to order it by, if not its own SHA-256."""
        if not self.count:
            return
        self._chosen.append((digest or hashlib.sha256(record).digest(), record))
        if len(self._chosen) >= 2 * self.count + 64:
            self._chosen = self.chosen()
            self._largest = self._chosen[-1][0] if len(self._chosen) == self.count else None

    def __len__(self) -> int:
        return len(self._chosen)

    def chosen(self) -> list[Hashed]:
        """Returns the records chosen so far with their digests, sorted by digest; equal records count once each."""
        return heapq.nsmallest(self.count, self._chosen)
