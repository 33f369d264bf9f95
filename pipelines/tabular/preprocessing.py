"""Transform's ``preprocessing_fn`` of the tabular pipeline, named to TFX by its import path.

Its results are what Trainer, Quantizer, Evaluator and BulkInferrer read: ``Transform``'s transformed examples.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf
import tensorflow_transform as tft

from pipelines.tabular.make_data import FEATURE_KEYS, LABEL_KEY

#: Import path for ``Transform(preprocessing_fn=…)``.
PREPROCESSING_FN = "pipelines.tabular.preprocessing.preprocessing_fn"
#: The transformed feature with all measurements: float32 [batch, 30], each of mean 0 and variance 1 over the rows.
MEASUREMENTS = "measurements"


def preprocessing_fn(inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
    """Turns the columns, each [batch, 1], into ``MEASUREMENTS`` and the label, int64 [batch, 1]."""
    measurements = tf.concat([tf.cast(inputs[key], tf.float32) for key in FEATURE_KEYS], axis=1)
    return {
        MEASUREMENTS: tft.scale_to_z_score(measurements, elementwise=True),
        LABEL_KEY: inputs[LABEL_KEY],
    }
