"""The tabular pipeline: CSV rows → Transform → Trainer → Freezer → Quantizer → Evaluator → Pusher, for any runner."""

from __future__ import annotations

import tensorflow_model_analysis as tfma
from tfx import v1 as tfx

from components.freezer.component import Freezer
from components.quantizer.component import Quantizer
from pipelines.ending import ending_with_push
from pipelines.tabular.make_data import LABEL_KEY
from pipelines.tabular.preprocessing import MEASUREMENTS, PREPROCESSING_FN
from pipelines.tabular.trainer import RUN_FN, TENSOR_SIGNATURE, TRANSFORMED_SIGNATURE
from quantizer_core.config import PreprocessConfig, QuantizationConfig
from quantizer_core.export import EXAMPLES_SIGNATURE

PIPELINE_NAME = "tabular"

#: What the Evaluator may compare with: this run's FP32 model, or the INT8 model that it blessed last.
BASELINES = ("fp32", "blessed")

#: How Transform's examples become the frozen graph's input.
PREPROCESS = PreprocessConfig(kind="tensors", features={MEASUREMENTS: MEASUREMENTS}, label_key=LABEL_KEY)
#: Dense layers this small are no faster in INT8 and would stay FP32 by default; here they show INT8 inside TFX.
CONFIG = QuantizationConfig(preprocess=PREPROCESS, only_faster=False)


def create_pipeline(
    pipeline_root: str,
    data_root: str,
    serving_root: str,
    pipeline_name: str = PIPELINE_NAME,
    quantization_config: QuantizationConfig = CONFIG,
    max_drop: float = 0.02,
    min_accuracy: float = 0.9,
    baseline: str = "fp32",
    train_steps: int = 300,
    metadata_connection_config: object | None = None,
    beam_pipeline_args: list[str] | None = None,
) -> tfx.dsl.Pipeline:
    """Returns the pipeline.

    Two verdicts are given: the Quantizer's own, INT8 against FP32, and that of TFX's Evaluator, which the
    BulkInferrer and the Pusher heed.

    Args:
      pipeline_root: directory for the artifacts.
      data_root: directory with the CSV file (see ``make_data``).
      serving_root: directory into which a blessed model is pushed.
      pipeline_name: name in ML Metadata.
      quantization_config: every choice of the conversion.
      max_drop: the largest loss of accuracy, against FP32 and against the baseline, that is blessed; 0.01 is one point.
      min_accuracy: what the Evaluator asks for whatever the baseline does.
      baseline: one of ``BASELINES``. With ``blessed`` a model that is bad already in FP32 is not blessed either; where
        none was ever blessed, ``min_accuracy`` alone decides.
      train_steps: training steps of 32 rows.
      metadata_connection_config: where ML Metadata lies; the runner's own if None.
      beam_pipeline_args: options of every Beam pipeline.

    Raises:
      ValueError: if ``baseline`` is none of ``BASELINES``.
    """
    if baseline not in BASELINES:
        raise ValueError(f"baseline is {baseline!r}; choose one of {', '.join(BASELINES)}")
    example_gen = tfx.components.CsvExampleGen(
        input_base=data_root,
        output_config=tfx.proto.Output(
            split_config=tfx.proto.SplitConfig(
                # Rows are told apart by a hash of their bytes: the same two thirds and one third every time.
                splits=[
                    tfx.proto.SplitConfig.Split(name="train", hash_buckets=2),
                    tfx.proto.SplitConfig.Split(name="eval", hash_buckets=1),
                ]
            )
        ),
    )
    statistics_gen = tfx.components.StatisticsGen(examples=example_gen.outputs["examples"])
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"], infer_feature_shape=True)
    transform = tfx.components.Transform(
        examples=example_gen.outputs["examples"],
        schema=schema_gen.outputs["schema"],
        preprocessing_fn=PREPROCESSING_FN,
    )
    examples = transform.outputs["transformed_examples"]
    trainer = tfx.components.Trainer(
        run_fn=RUN_FN,
        examples=examples,
        transform_graph=transform.outputs["transform_graph"],
        schema=schema_gen.outputs["schema"],
        train_args=tfx.proto.TrainArgs(splits=["train"], num_steps=train_steps),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
    )
    freezer = Freezer(model=trainer.outputs["model"], signature=TENSOR_SIGNATURE)
    quantizer = Quantizer(
        frozen_graph=freezer.outputs["frozen_graph"],
        examples=examples,
        quantization_config=quantization_config,
        calibration_split="train",
        evaluation_split="eval",
        metric="top1",
        max_drop=max_drop,
    )
    nodes = [example_gen, statistics_gen, schema_gen, transform, trainer, freezer, quantizer]
    baseline_model = trainer.outputs["model"]
    if baseline == "blessed":
        resolver = _latest_blessed(quantizer)
        nodes.append(resolver)
        baseline_model = resolver.outputs["model"]
    evaluator = tfx.components.Evaluator(
        examples=examples,
        model=quantizer.outputs["quantized_model"],
        baseline_model=baseline_model,
        example_splits=["eval"],
        eval_config=eval_config(
            max_drop=max_drop,
            min_accuracy=min_accuracy,
            baseline_signature=TRANSFORMED_SIGNATURE if baseline == "fp32" else EXAMPLES_SIGNATURE,
        ),
    )
    bulk_inferrer = tfx.components.BulkInferrer(
        examples=examples,
        model=quantizer.outputs["quantized_model"],
        model_blessing=evaluator.outputs["blessing"],
        data_spec=tfx.proto.DataSpec(example_splits=["eval"]),
    )
    return ending_with_push(
        [*nodes, evaluator, bulk_inferrer],
        model=quantizer.outputs["quantized_model"],
        blessing=evaluator.outputs["blessing"],
        serving_root=serving_root,
        pipeline_name=pipeline_name,
        pipeline_root=pipeline_root,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=beam_pipeline_args,
    )


def eval_config(max_drop: float, min_accuracy: float, baseline_signature: str) -> tfma.EvalConfig:
    """Returns what TFX's Evaluator measures and asks for: accuracy, of the INT8 model and of its baseline.

    Args:
      max_drop: the largest loss against the baseline.
      min_accuracy: the least accuracy.
      baseline_signature: the baseline's signature on serialized transformed examples; the INT8 model's is known.
    """
    accuracy = tfma.MetricConfig(
        class_name="SparseCategoricalAccuracy",
        threshold=tfma.MetricThreshold(
            value_threshold=tfma.GenericValueThreshold(lower_bound={"value": min_accuracy}),
            change_threshold=tfma.GenericChangeThreshold(
                direction=tfma.MetricDirection.HIGHER_IS_BETTER, absolute={"value": -max_drop}
            ),
        ),
    )
    return tfma.EvalConfig(
        model_specs=[
            tfma.ModelSpec(name="int8", label_key=LABEL_KEY, signature_name=EXAMPLES_SIGNATURE),
            tfma.ModelSpec(name="baseline", is_baseline=True, label_key=LABEL_KEY, signature_name=baseline_signature),
        ],
        slicing_specs=[tfma.SlicingSpec()],
        metrics_specs=[tfma.MetricsSpec(metrics=[tfma.MetricConfig(class_name="ExampleCount"), accuracy])],
    )


def _latest_blessed(quantizer: Quantizer) -> tfx.dsl.Resolver:
    """Returns the Resolver of the latest INT8 model that the Evaluator blessed.

    It looks among the Quantizer's models alone: the Trainer's are ``Model``s too. The Quantizer's own blessings do not
    count, for they name no model: what a model's number in ML Metadata will be is known to the Evaluator only.
    """
    return tfx.dsl.Resolver(
        strategy_class=tfx.dsl.experimental.LatestBlessedModelStrategy,
        model=tfx.dsl.Channel(
            type=tfx.types.standard_artifacts.Model, producer_component_id=quantizer.id, output_key="quantized_model"
        ),
        model_blessing=tfx.dsl.Channel(type=tfx.types.standard_artifacts.ModelBlessing),
    ).with_id("latest_blessed_model")
