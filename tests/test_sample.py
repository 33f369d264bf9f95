"""The kept sample: bounded, and the same in any order and sharding."""

from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from quantizer_core.sample import SmallestHashes, digest_of

RECORDS = st.lists(st.binary(max_size=4), max_size=200)


@given(RECORDS, st.integers(0, 12), st.randoms(use_true_random=False), st.integers(0, 200))
def test_order_and_sharding_leave_no_trace(records, count, random, cut):
    whole = SmallestHashes(count)
    for record in records:
        whole.add(record)
    shuffled = list(records)
    random.shuffle(shuffled)
    shards = []
    for part in (shuffled[:cut], shuffled[cut:]):
        shard = SmallestHashes(count)
        for record in part:
            shard.add(record)
        shards.append(shard)
    merged = SmallestHashes(count, [pair for shard in shards for pair in shard.chosen()])
    assert merged.chosen() == whole.chosen()
    sparing = SmallestHashes(count)
    for record in shuffled:
        digest = hashlib.sha256(record).digest()
        if sparing.wants(digest):
            sparing.add(record, digest)
    assert sparing.chosen() == whole.chosen()
    assert len(whole.chosen()) == min(count, len(records))
    assert len(whole) <= 2 * count + 64


def test_a_digest_tells_values_shapes_and_names_apart():
    feeds = [
        {"x": np.zeros((2, 3), np.float32)},
        {"x": np.zeros((3, 2), np.float32)},
        {"y": np.zeros((2, 3), np.float32)},
        {"x": np.ones((2, 3), np.float32)},
        {"x": np.array(b"bytes", object)},
        {"x": np.array(b"other", object)},
    ]
    assert len({digest_of(feed) for feed in feeds}) == len(feeds)
    assert digest_of(feeds[0]) == digest_of({"x": np.zeros((2, 3), np.float32)})
