"""What the BulkInferrer wrote: which logits the INT8 model gives for which example."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from pipelines.tabular.make_data import LABEL_KEY


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One example's.

    Attributes:
      example: the serialized ``tf.Example``.
      logits: float32 [2].
      label: the class that the example carries.
    """

    example: bytes
    logits: np.ndarray
    label: int


def read_predictions(inference_result: str) -> list[Prediction]:
    """Reads the PredictionLogs under an InferenceResult's URI; none where the model was not blessed."""
    files = sorted(tf.io.gfile.glob(os.path.join(inference_result, "prediction_logs*")))
    predictions = []
    for record in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
        log = prediction_log_pb2.PredictionLog.FromString(record).predict_log
        examples = tf.make_ndarray(log.request.inputs["examples"]).ravel().tolist()
        logits = tf.make_ndarray(log.response.outputs["logits"]).reshape(len(examples), -1)
        predictions.extend(
            Prediction(example, row, _label(example)) for example, row in zip(examples, logits, strict=True)
        )
    return predictions


def _label(example: bytes) -> int:
    return int(tf.train.Example.FromString(example).features.feature[LABEL_KEY].int64_list.value[0])
