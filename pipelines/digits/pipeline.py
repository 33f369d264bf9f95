"""The digits pipeline: ImportExampleGen → Trainer → Freezer → Quantizer → Pusher, for any runner."""

from __future__ import annotations

from tfx import v1 as tfx

from components.freezer.component import Freezer
from components.quantizer.component import Quantizer
from pipelines.digits.make_data import IMAGE_KEY, LABEL_KEY
from pipelines.digits.trainer import INPUT_NAME, RUN_FN, TENSOR_SIGNATURE
from pipelines.ending import ending_with_push
from quantizer_core.config import PreprocessConfig, QuantizationConfig

PIPELINE_NAME = "digits"

#: How the digits' examples become the frozen graph's input.
PREPROCESS = PreprocessConfig(kind="tensors", features={INPUT_NAME: IMAGE_KEY}, label_key=LABEL_KEY)
#: Layers on images this small are no faster in INT8 and would stay FP32 by default; here they show how it all works.
CONFIG = QuantizationConfig(preprocess=PREPROCESS, only_faster=False)


def create_pipeline(
    pipeline_root: str,
    data_root: str,
    serving_root: str,
    pipeline_name: str = PIPELINE_NAME,
    quantization_config: QuantizationConfig = CONFIG,
    max_drop: float = 0.01,
    train_steps: int = 600,
    metadata_connection_config: object | None = None,
    beam_pipeline_args: list[str] | None = None,
) -> tfx.dsl.Pipeline:
    """Returns the pipeline.

    Args:
      pipeline_root: directory for the artifacts.
      data_root: directory with the digits' TFRecord file (see ``make_data``).
      serving_root: directory into which a blessed model is pushed.
      pipeline_name: name in ML Metadata.
      quantization_config: every choice of the conversion.
      max_drop: the largest loss of accuracy that is blessed; 0.01 is one point.
      train_steps: training steps of 32 images.
      metadata_connection_config: where ML Metadata lies; the runner's own if None.
      beam_pipeline_args: options of every Beam pipeline.
    """
    example_gen = tfx.components.ImportExampleGen(
        input_base=data_root,
        output_config=tfx.proto.Output(
            split_config=tfx.proto.SplitConfig(
                # Examples are told apart by a hash of their bytes: the same two thirds and one third every time.
                splits=[
                    tfx.proto.SplitConfig.Split(name="train", hash_buckets=2),
                    tfx.proto.SplitConfig.Split(name="eval", hash_buckets=1),
                ]
            )
        ),
    )
    trainer = tfx.components.Trainer(
        run_fn=RUN_FN,
        examples=example_gen.outputs["examples"],
        train_args=tfx.proto.TrainArgs(splits=["train"], num_steps=train_steps),
        eval_args=tfx.proto.EvalArgs(splits=["eval"]),
    )
    freezer = Freezer(model=trainer.outputs["model"], signature=TENSOR_SIGNATURE)
    quantizer = Quantizer(
        frozen_graph=freezer.outputs["frozen_graph"],
        examples=example_gen.outputs["examples"],
        quantization_config=quantization_config,
        calibration_split="train",
        evaluation_split="eval",
        metric="top1",
        max_drop=max_drop,
    )
    return ending_with_push(
        [example_gen, trainer, freezer, quantizer],
        model=quantizer.outputs["quantized_model"],
        blessing=quantizer.outputs["blessing"],
        serving_root=serving_root,
        pipeline_name=pipeline_name,
        pipeline_root=pipeline_root,
        metadata_connection_config=metadata_connection_config,
        beam_pipeline_args=beam_pipeline_args,
    )
