"""Calibration from serialized examples: what is counted, what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from quantizer_core.calibration.run import CalibrationRun, ReadCounts, calibrate
from quantizer_core.data import tensor_example
from quantizer_core.errors import DataError
from tests.helpers.classifier import CONFIG, prepared_classifier, records


def lenient(fraction: float) -> object:
    return dataclasses.replace(CONFIG, max_bad_fraction=fraction)


def test_order_and_shards_leave_no_trace() -> None:
    examples = records(19)
    whole = calibrate(prepared_classifier(), examples, CONFIG)
    assert whole.statistics.num_examples == whole.reads.read == 19
    assert calibrate(prepared_classifier(), examples[::-1], CONFIG).statistics.to_bytes() == whole.statistics.to_bytes()
    parts = [calibrate(prepared_classifier(), examples[i::3], CONFIG) for i in range(3)]
    merged = parts[1].merge(CalibrationRun()).merge(parts[2]).merge(parts[0])
    assert merged.statistics.to_bytes() == whole.statistics.to_bytes()
    assert merged.reads == whole.reads


def test_bad_records_are_counted_by_reason_and_leave_the_rest_as_it_was() -> None:
    examples = records(10)
    broken = [b"garbage", *examples[:5], tensor_example({"y": np.zeros(2, np.float32)}, 1), *examples[5:]]
    seen: list[int] = []
    run = calibrate(prepared_classifier(), broken, lenient(0.5), seen.append)
    assert (run.reads.read, run.reads.skipped, sum(run.reads.reasons.values())) == (10, 2, 2)
    assert run.reads.reasons == {"damaged_record": 1, "missing_feature": 1}
    assert "'x'" in run.reads.messages["missing_feature"]
    assert seen == list(range(1, 13))
    assert run.statistics.to_bytes() == calibrate(prepared_classifier(), examples, CONFIG).statistics.to_bytes()


def test_too_many_bad_records_fail_with_counts_and_reason() -> None:
    with pytest.raises(DataError, match=r"3 of 20 examples for calibration.*max_bad_fraction=0.1 .*\(3 times\): .*'x'"):
        calibrate(prepared_classifier(), records(20, bad=3), lenient(0.1))
    assert calibrate(prepared_classifier(), records(20, bad=2), lenient(0.1)).reads.skipped == 2


def test_no_examples_fail() -> None:
    with pytest.raises(DataError, match="no examples for calibration"):
        calibrate(prepared_classifier(), [], CONFIG)
    with pytest.raises(DataError, match="3 of 3 examples"):
        calibrate(prepared_classifier(), records(3, bad=3), lenient(1.0))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_name_the_tensor(value: float) -> None:
    poisoned = np.zeros((6, 6, 2), np.float32)
    poisoned[2, 2, 0] = value
    with pytest.raises(DataError, match="tensor 'pooled' held .* in 1 of 5 examples"):
        calibrate(prepared_classifier(), [*records(4), tensor_example({"x": poisoned}, 0)], CONFIG)


def test_read_counts_merge_and_round_trip() -> None:
    one, two = ReadCounts(3, 2, {"b": 1, "a": 1}, {"b": "y", "a": "z"}), ReadCounts(1, 1, {"b": 1}, {"b": "x"})
    assert one.merge(two) == two.merge(one) == ReadCounts(4, 3, {"a": 1, "b": 2}, {"a": "z", "b": "x"})
    assert one.merge(ReadCounts()) == one
    assert ReadCounts.from_bytes(one.to_bytes()) == one


def test_many_bad_records_are_kept_account_of_in_little_memory() -> None:
    """Each says another length; one text of each kind is kept, the same whatever the order."""
    broken = [bytes([255]) * (index + 1) for index in range(50)]
    counts = [
        calibrate(prepared_classifier(), [*records(60), *part], lenient(0.5)).reads for part in (broken, broken[::-1])
    ]
    assert counts[0] == counts[1] and counts[0].reasons == {"damaged_record": 50}
    assert counts[0].messages == {"damaged_record": "a record of 1 bytes is no serialized tf.Example"}
