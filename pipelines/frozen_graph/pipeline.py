"""The frozen graph pipeline: ImportExampleGen and GraphImporter → Quantizer → Pusher, for any runner."""

from __future__ import annotations

from tfx import v1 as tfx

from components.graph_importer.component import GraphImporter
from components.quantizer.component import Quantizer
from pipelines.ending import ending_with_push
from quantizer_core.config import QuantizationConfig

PIPELINE_NAME = "frozen-graph"

CALIBRATION_SPLIT = "calibration"
EVALUATION_SPLIT = "evaluation"


def create_pipeline(
    pipeline_root: str,
    graph_path: str,
    examples_root: str,
    serving_root: str,
    quantization_config: QuantizationConfig,
    calibration_pattern: str = "calibration*",
    evaluation_pattern: str = "evaluation*",
    num_calibration_examples: int = 0,
    num_evaluation_examples: int = 0,
    metric: str = "top1",
    max_drop: float = 0.01,
    fingerprint: str | None = None,
    pipeline_name: str = PIPELINE_NAME,
    metadata_connection_config: object | None = None,
    beam_pipeline_args: list[str] | None = None,
) -> tfx.dsl.Pipeline:
    """Returns the pipeline.

    Args:
      pipeline_root: directory for the artifacts.
      graph_path: the frozen FP32 graph.
      examples_root: directory with TFRecord files of ``tf.Example``s.
      serving_root: directory into which a blessed model is pushed.
      quantization_config: every choice of the conversion: the graph's inputs and outputs (else they are detected), and
        the preprocessing that turns an example into the inputs.
      calibration_pattern: which of the files, relative to ``examples_root``, to calibrate on.
      evaluation_pattern: which of them to evaluate on; keep the two apart.
      num_calibration_examples: how many examples to calibrate on; 0: all.
      num_evaluation_examples: how many examples to evaluate on; 0: all.
      metric: ``top1`` or ``top5`` on labelled examples; ``agreement`` or ``similarity``, which need no labels.
      max_drop: the largest loss of the metric that is blessed; 0.01 is one point.
      fingerprint: what stands for the contents of the graph, and of a preprocessing's module, in the cache keys; None:
        their SHA-256, for which the files must be readable where the pipeline is made.
      pipeline_name: name in ML Metadata.
      metadata_connection_config: where ML Metadata lies; the runner's own if None.
      beam_pipeline_args: options of every Beam pipeline.
    """
    example_gen = tfx.components.ImportExampleGen(
        input_base=examples_root,
        input_config=tfx.proto.Input(
            splits=[
                tfx.proto.Input.Split(name=CALIBRATION_SPLIT, pattern=calibration_pattern),
                tfx.proto.Input.Split(name=EVALUATION_SPLIT, pattern=evaluation_pattern),
            ]
        ),
    )
    importer = GraphImporter(
        graph_path=graph_path,
        inputs=quantization_config.inputs,
        outputs=quantization_config.outputs,
        fingerprint=fingerprint,
    )
    quantizer = Quantizer(
        frozen_graph=importer.outputs["frozen_graph"],
        examples=example_gen.outputs["examples"],
        quantization_config=quantization_config,
        calibration_split=CALIBRATION_SPLIT,
        evaluation_split=EVALUATION_SPLIT,
        num_calibration_examples=num_calibration_examples,
        num_evaluation_examples=num_evaluation_examples,
        metric=metric,
        max_drop=max_drop,
        module_fingerprint=fingerprint,
    )
    return ending_with_push(
        [example_gen, importer, quantizer],
        model=quantizer.outputs["quantized_model"],
        blessing=quantizer.outputs["blessing"],
        serving_root=serving_root,
        pipeline_name=pipeline_name,
        pipeline_root=pipeline_root,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=beam_pipeline_args,
    )
