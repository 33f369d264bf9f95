"""FP32 against its twin, from serialized examples to counts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from quantizer_core.errors import DataError
from quantizer_core.evaluation import EvaluationCounts, EvaluationRun, evaluate, judge
from quantizer_core.runtime import GraphSession
from quantizer_core.types import TensorSpec
from tests.helpers.classifier import CONFIG, INPUTS, OUTPUTS, classifier, records


def values_and_labels(examples: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    features = [tf.train.Example.FromString(record).features.feature for record in examples]
    values = np.array([list(f["x"].float_list.value) for f in features], np.float32).reshape(-1, 6, 6, 2)
    return values, np.array([f["label"].int64_list.value[0] for f in features])


def scores(graph_def: tf.GraphDef, values: np.ndarray) -> np.ndarray:
    with GraphSession(graph_def, INPUTS, OUTPUTS) as session:
        return session.run({"x": values})[0]


def test_counts_are_those_of_the_two_graphs() -> None:
    examples = records(50)
    run = evaluate(classifier(), classifier(noise=0.5), INPUTS, OUTPUTS, examples, CONFIG)
    values, labels = values_and_labels(examples)
    fp32, int8 = (scores(classifier(noise), values).argmax(1) for noise in (0.0, 0.5))
    assert 0 < run.counts.agreement < 50
    assert run.counts.agreement == (fp32 == int8).sum()
    assert (run.counts.fp32_top1, run.counts.int8_top1) == ((fp32 == labels).sum(), (int8 == labels).sum())
    assert run.counts.only_fp32 == ((fp32 == labels) & (int8 != labels)).sum()
    assert (run.counts.examples, run.counts.labelled, run.reads.read) == (50, 50, 50)


def test_order_and_shards_leave_no_trace() -> None:
    examples = records(23)
    arguments = classifier(), classifier(noise=0.3), INPUTS, OUTPUTS
    whole = evaluate(*arguments, examples, CONFIG)
    assert evaluate(*arguments, examples[::-1], CONFIG).counts.to_bytes() == whole.counts.to_bytes()
    parts = [evaluate(*arguments, examples[i::2], CONFIG) for i in range(2)]
    assert parts[1].merge(EvaluationRun()).merge(parts[0]) == whole


def test_a_graph_compared_with_itself_is_perfect() -> None:
    run = evaluate(classifier(), classifier(), INPUTS, OUTPUTS, records(9), CONFIG)
    assert run.counts.agreement == 9 and run.counts.relative_error() == 0
    assert judge(run.counts, max_drop=0.0).blessed


def test_a_batch_fixed_at_one_runs_one_by_one() -> None:
    fixed = (TensorSpec("x", "float32", (1, 6, 6, 2)),)
    run = evaluate(classifier(batch=1), classifier(batch=1), fixed, OUTPUTS, records(5), CONFIG)
    assert run.counts.examples == run.counts.agreement == 5


def test_outputs_that_fold_the_batch_are_compared_example_by_example() -> None:
    graphs = []
    for noise in (0.0, 0.1):
        with tf.Graph().as_default() as graph:
            tf.graph_util.import_graph_def(classifier(noise), name="")
            tf.reshape(graph.get_tensor_by_name("relu:0"), [-1, 8], name="pixels")
        graphs.append(graph.as_graph_def())
    run = evaluate(graphs[0], graphs[1], INPUTS, ("pixels",), records(6), CONFIG)
    assert (run.counts.examples, run.counts.measured, run.counts.classified) == (6, 6, 0)
    assert 0.01 < (run.counts.relative_error() or 0) < 0.5


def test_bad_records_and_labels_are_counted() -> None:
    lenient = dataclasses.replace(CONFIG, max_bad_fraction=0.5)
    offset = dataclasses.replace(lenient, preprocess=dataclasses.replace(CONFIG.preprocess, label_offset=2))
    examples = records(20, bad=2)
    _, labels = values_and_labels(examples[:18])
    run = evaluate(classifier(), classifier(), INPUTS, OUTPUTS, examples, lenient)
    assert (run.reads.read, run.reads.skipped, run.counts.examples) == (18, 2, 18)
    outside = int((labels + 2 >= 7).sum())
    assert 0 < outside < 8
    run = evaluate(classifier(), classifier(), INPUTS, OUTPUTS, examples, offset)
    assert (run.reads.skipped, run.counts.examples) == (2 + outside, 18 - outside)
    assert run.reads.reasons == {"wrong_shape": 2, "label_out_of_range": outside}
    assert "label 7 is no index" in run.reads.messages["label_out_of_range"]


def test_no_examples_or_too_many_bad_ones_fail() -> None:
    with pytest.raises(DataError, match="no examples for evaluation"):
        evaluate(classifier(), classifier(), INPUTS, OUTPUTS, [], CONFIG)
    with pytest.raises(DataError, match="5 of 10 examples for evaluation"):
        evaluate(classifier(), classifier(), INPUTS, OUTPUTS, records(10, bad=5), CONFIG)


def test_examples_without_labels_are_compared_by_agreement() -> None:
    plain = dataclasses.replace(CONFIG, preprocess=dataclasses.replace(CONFIG.preprocess, label_key=""))
    run = evaluate(classifier(), classifier(), INPUTS, OUTPUTS, records(4, labels=False), plain)
    assert run.counts == EvaluationCounts(4, classified=4, agreement=4, classes=7, measured=4, compared=4)
    assert judge(run.counts, metric="agreement").blessed
