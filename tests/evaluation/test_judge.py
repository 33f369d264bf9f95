"""The gate: who passes, who does not, and what is said about it."""

from __future__ import annotations

import math

import pytest

from quantizer_core.errors import ConfigError, DataError
from quantizer_core.evaluation import METRICS, EvaluationCounts, EvaluationResult, judge
from quantizer_core.evaluation.judge import mcnemar


def counts(fp32: int, int8: int, total: int = 1000, **more: int) -> EvaluationCounts:
    both = min(fp32, int8)
    return EvaluationCounts(
        examples=total, classified=total, labelled=total, agreement=total - abs(fp32 - int8), fp32_top1=fp32,
        int8_top1=int8, fp32_top5=fp32, int8_top5=int8, both=both, only_fp32=fp32 - both, only_int8=int8 - both,
        measured=total, **more,
    )  # fmt: skip


@pytest.mark.parametrize("metric", ["top1", "top5"])
@pytest.mark.parametrize(
    ("int8", "blessed"), [(800, True), (790, True), (789, False), (0, False), (801, True), (1000, True)]
)
def test_a_drop_up_to_the_limit_passes(metric: str, int8: int, blessed: bool) -> None:
    result = judge(counts(800, int8), metric=metric, max_drop=0.01)
    assert result.blessed is blessed
    assert (result.fp32, result.int8, result.drop) == pytest.approx((0.8, int8 / 1000, (800 - int8) / 1000))
    assert ("within the 1.00 allowed" if blessed else "more than the 1.00 allowed") in result.reason


@pytest.mark.parametrize("drop", [1, 3, 7, 29, 57])
def test_a_drop_of_exactly_the_limit_passes_whatever_the_rounding(drop: int) -> None:
    for total in (90, 300, 700, 1797):
        assert judge(counts(80, 80 - drop, total), max_drop=drop / total).blessed
        assert not judge(counts(80, 80 - drop, total), max_drop=drop / total - 1e-6).blessed


def test_reasons_say_what_happened() -> None:
    assert judge(counts(800, 700)).reason == (
        "top1 falls from 80.00% (FP32) to 70.00% (INT8) on 1000 examples: a drop of 10.00 points, more than the 1.00 "
        "allowed."
    )
    assert "top1 rises from 80.00% (FP32) to 90.00% (INT8)" in judge(counts(800, 900)).reason
    assert "top1 stays at 80.00%" in judge(counts(800, 800)).reason


@pytest.mark.parametrize(
    ("right", "total", "classes", "metric", "doubted"),
    [
        (1, 100, 1000, "top1", True),  # P(1 or more of 100 at 1/1000) = 0.095
        (2, 100, 1000, "top1", False),  # 0.005
        (0, 8, 10, "top1", True),
        (120, 1000, 10, "top1", False),  # 0.022
        (110, 1000, 10, "top1", True),  # 0.16
        (500, 1000, 10, "top5", True),
        (530, 1000, 10, "top5", False),  # 0.031
        (10, 10, 5, "top5", False),  # all of five classes are the best five
        (0, 10, 1000, "agreement", False),
        (800, 1000, 0, "top1", False),
    ],
)
def test_an_accuracy_of_guessing_is_doubted(right: int, total: int, classes: int, metric: str, doubted: bool) -> None:
    """The label's number, the scale or the order of channels is wrong then, and INT8 loses nothing where nothing is."""
    result = judge(counts(right, right, total, classes=classes), metric=metric)
    said = f"FP32 itself is right on {right} of {total}, no more than guessing among {classes} classes would be"
    assert result.blessed and (said in result.reason) == doubted


def test_outputs_that_are_no_numbers_are_never_blessed() -> None:
    for metric in METRICS:
        result = judge(counts(800, 800, nonfinite=1), metric=metric, max_drop=1.0)
        assert not result.blessed
        assert "NaN or infinity on 1 of 1000 examples" in result.reason


def test_agreement_and_similarity_need_no_labels() -> None:
    unlabelled = EvaluationCounts(examples=200, classified=200, agreement=197, measured=200, error_high=1 * 200)
    agreement = judge(unlabelled, metric="agreement", max_drop=0.02)
    assert (agreement.blessed, agreement.int8, agreement.agreement) == (True, 0.985, 0.985)
    assert math.isnan(agreement.mcnemar_p)
    assert not judge(unlabelled, metric="agreement", max_drop=0.01).blessed
    similarity = judge(unlabelled, metric="similarity", max_drop=0.01)
    assert similarity.drop == similarity.relative_error == 1 / 256 and similarity.blessed


def test_metrics_that_cannot_be_had_say_what_to_do() -> None:
    unlabelled = EvaluationCounts(examples=2, classified=2, agreement=2)
    with pytest.raises(DataError, match="no labels.*label_key.*'agreement'"):
        judge(unlabelled)
    with pytest.raises(DataError, match="no output .* class scores.*'similarity'"):
        judge(EvaluationCounts(examples=2, measured=2), metric="agreement")
    with pytest.raises(DataError, match="finite floating-point"):
        judge(EvaluationCounts(examples=2), metric="similarity")
    with pytest.raises(DataError, match="no examples"):
        judge(EvaluationCounts())


def test_wrong_options_are_config_errors() -> None:
    with pytest.raises(ConfigError, match="'top2'; did you mean 'top"):
        judge(counts(1, 1), metric="top2")
    for drop in (-0.1, 1.5, math.nan):
        with pytest.raises(ConfigError, match="max_drop"):
            judge(counts(1, 1), max_drop=drop)


@pytest.mark.parametrize("result", [judge(counts(80, 79, 100), facts={"nodes": 3, "split": "eval"})])
def test_json_round_trips_and_is_sorted(result: EvaluationResult) -> None:
    text = result.to_json()
    assert EvaluationResult.from_json(text) == result
    keys = [line.split('"')[1] for line in text.splitlines() if line.startswith('  "')]
    assert keys == sorted(keys)
    unlabelled = judge(EvaluationCounts(examples=2, classified=2, agreement=2), metric="agreement").to_json()
    assert '"mcnemar_p": null' in unlabelled and "NaN" not in unlabelled
    assert EvaluationResult.from_json(unlabelled).to_json() == unlabelled
    for wrong in ("", "[]", '{"blessed": true}'):
        with pytest.raises(DataError, match="no evaluation result"):
            EvaluationResult.from_json(wrong)


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (5, 5), (10, 2), (2, 10), (40, 61)])
def test_mcnemar_is_the_binomial_test(one: int, other: int) -> None:
    total = one + other
    tail = sum(math.comb(total, i) for i in range(min(one, other) + 1)) / 2**total
    assert mcnemar(one, other) == pytest.approx(min(1.0, 2 * tail), rel=1e-12)


def test_mcnemar_of_many_examples_does_not_overflow() -> None:
    assert mcnemar(3000, 3200) == pytest.approx(0.0115, abs=5e-4)
    assert mcnemar(100_000, 0) == 0.0
