"""The comparison of two graphs on one example, and its sums."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quantizer_core.errors import DataError
from quantizer_core.evaluation.counts import EvaluationCounts, compare

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=7, max_size=7).map(lambda v: np.array(v, np.float32))
COUNTS = st.builds(compare, SCORES.map(lambda v: [v]), SCORES.map(lambda v: [v]), st.none() | st.integers(0, 6))


@given(st.lists(COUNTS, min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(1, 3))
@settings(max_examples=60)
def test_any_sharding_and_order_gives_the_same_bytes(counts: list, random: object, shards: int) -> None:
    whole = functools.reduce(EvaluationCounts.merge, counts)
    random.shuffle(counts)  # type: ignore[attr-defined]
    parts = [functools.reduce(EvaluationCounts.merge, counts[i::shards], EvaluationCounts()) for i in range(shards)]
    merged = functools.reduce(EvaluationCounts.merge, parts)
    assert merged.to_bytes() == whole.to_bytes()
    assert EvaluationCounts.from_bytes(merged.to_bytes()) == whole


@given(SCORES, SCORES, st.integers(0, 6))
@settings(max_examples=80)
def test_ranks_are_those_of_a_stable_sort(fp32: np.ndarray, int8: np.ndarray, label: int) -> None:
    counts = compare([fp32], [int8], label)
    orders = [np.argsort(-scores, kind="stable") for scores in (fp32, int8)]
    right = [int(order[0] == label) for order in orders]
    assert (counts.fp32_top1, counts.int8_top1) == tuple(right)
    assert (counts.fp32_top5, counts.int8_top5) == tuple(int(label in order[:5]) for order in orders)
    assert counts.agreement == int(orders[0][0] == orders[1][0])
    assert (counts.both, counts.only_fp32, counts.only_int8) == (
        right[0] * right[1], right[0] * (1 - right[1]), right[1] * (1 - right[0]),
    )  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_no_number_is_never_right(bad: float) -> None:
    good, broken = np.array([0, 9, 1], np.float32), np.array([0, bad, 1], np.float32)
    counts = compare([good], [broken], 1)
    assert (counts.nonfinite, counts.fp32_top1, counts.int8_top1, counts.int8_top5) == (1, 1, 0, 0)
    assert (counts.agreement, counts.measured) == (0, 0)
    both = compare([broken], [broken], 1)
    assert (both.nonfinite, both.agreement, both.fp32_top1) == (0, 0, 0)


def test_the_first_vector_output_holds_the_classes() -> None:
    image, scores, count = np.ones((4, 4)), np.array([[[1.0, 2.0, 3.0]]]), np.array(5, np.int64)
    counts = compare([count, image, scores], [count, image, scores[..., ::-1]], 2)
    assert (counts.classified, counts.fp32_top1, counts.int8_top1) == (1, 1, 0)
    counts = compare([image], [image + 0.5], None)
    assert (counts.classified, counts.measured) == (0, 1)
    assert counts.relative_error() == pytest.approx(0.5)


@pytest.mark.parametrize("softmaxed", [False, True])
def test_the_divergence_is_that_of_the_distributions(softmaxed: bool) -> None:
    p, q = np.array([0.5, 0.25, 0.25], np.float32), np.array([0.25, 0.25, 0.5], np.float32)
    scores = (p, q) if softmaxed else (np.log(p) + 3, np.log(q) - 1)
    counts = compare([scores[0]], [scores[1]], None)
    assert counts.divergence() == pytest.approx(0.5 * np.log(2) + 0.25 * np.log(0.5), abs=1e-6)
    same = compare([scores[0]], [scores[0]], None)
    assert counts.merge(same).divergence() == pytest.approx(counts.divergence() / 2)
    assert same.divergence() == pytest.approx(0, abs=1e-9)


def test_certainty_of_the_wrong_class_diverges_finitely() -> None:
    counts = compare([np.array([1.0, 0.0])], [np.array([0.0, 1.0])], None)
    assert 20 < counts.divergence() < 40
    assert compare([np.array([1.0, 2.0])], [np.array([np.nan, 2.0])], None).divergence() is None


def test_a_silent_output_has_no_error_or_all_of_it() -> None:
    silent = np.zeros((2, 2))
    assert compare([silent], [silent], None).relative_error() == 0
    assert compare([silent], [silent + 1], None).relative_error() == 1


def test_unlabelled_examples_count_for_agreement_only() -> None:
    counts = compare([np.array([1.0, 2.0])], [np.array([1.0, 3.0])], None)
    assert (counts.labelled, counts.classified, counts.agreement) == (0, 1, 1)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_output_is_a_data_error(label: int) -> None:
    with pytest.raises(DataError, match=f"label {label} is no index .* 3 classes; check label_key and label_offset"):
        compare([np.zeros(3)], [np.zeros(3)], label)


def test_damaged_bytes_are_a_data_error() -> None:
    for data in (b"", b"{", b'{"exampels": 1}'):
        with pytest.raises(DataError, match="no evaluation counts"):
            EvaluationCounts.from_bytes(data)


def test_an_output_of_another_shape_is_an_error_of_all_of_it() -> None:
    boxes = np.arange(8, dtype=np.float32).reshape(2, 4)
    counts = compare([boxes], [boxes[:1]], None)
    assert (counts.measured, counts.relative_error(), counts.classified) == (1, 1.0, 0)
    scores = np.array([1.0, 3.0, 2.0], np.float32)
    counts = compare([scores], [scores[:2]], 1)
    assert (counts.classified, counts.agreement, counts.fp32_top1, counts.int8_top1, counts.only_fp32) == (
        1,
        0,
        1,
        0,
        1,
    )
