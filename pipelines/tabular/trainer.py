"""The Trainer's ``run_fn`` of the tabular pipeline: three dense layers on transformed measurements.

It is named to TFX by its import path, so that nothing has to be packaged. The SavedModel has three signatures, see
``export_model``.
"""

from __future__ import annotations

import keras
import tensorflow as tf
import tensorflow_transform as tft
from keras import layers
from tfx.components.trainer.fn_args_utils import FnArgs

from pipelines.tabular.make_data import FEATURE_KEYS, LABEL_KEY, NUM_CLASSES
from pipelines.tabular.preprocessing import MEASUREMENTS
from pipelines.training import read_sorted, train

#: Import path for ``Trainer(run_fn=…)``.
RUN_FN = "pipelines.tabular.trainer.run_fn"
#: The signature on serialized transformed examples, such as the INT8 model's ``serving_default`` takes.
TRANSFORMED_SIGNATURE = "serving_transformed"
#: The signature on transformed measurements, which the Freezer freezes.
TENSOR_SIGNATURE = "serving_tensors"


def build_model() -> keras.Model:
    """Returns an untrained network: measurements, float32 [batch, 30] → logits, float32 [batch, 2]."""
    measurements = keras.Input((len(FEATURE_KEYS),), name=MEASUREMENTS)
    x = layers.Dense(64, activation="relu")(measurements)
    x = layers.Dense(32, activation="relu")(x)
    return keras.Model(measurements, layers.Dense(NUM_CLASSES, name="logits")(x))


def export_model(model: keras.Model, features: tft.TFTransformOutput, directory: str) -> None:
    """Saves a model with the signatures

    * ``serving_default``: serialized examples as they come in, Transform's graph inside;
    * ``TRANSFORMED_SIGNATURE``: serialized examples that went through Transform;
    * ``TENSOR_SIGNATURE``: transformed measurements, float32 [batch, 30].

    Each gives ``logits``, float32 [batch, 2].
    """
    transform = features.transform_features_layer()
    raw = {key: spec for key, spec in features.raw_feature_spec().items() if key != LABEL_KEY}
    model.transform_features = transform  # SavedModels hold only what hangs on the root

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_raw(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(transform(tf.io.parse_example(examples, raw))[MEASUREMENTS], training=False)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_transformed(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        spec = {MEASUREMENTS: features.transformed_feature_spec()[MEASUREMENTS]}
        return {"logits": model(tf.io.parse_example(examples, spec)[MEASUREMENTS], training=False)}

    @tf.function(input_signature=[tf.TensorSpec([None, len(FEATURE_KEYS)], tf.float32, name=MEASUREMENTS)])
    def serve_tensors(measurements: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(measurements, training=False)}

    signatures = {
        "serving_default": serve_raw,
        TRANSFORMED_SIGNATURE: serve_transformed,
        TENSOR_SIGNATURE: serve_tensors,
    }
    tf.saved_model.save(model, directory, signatures=signatures)


def run_fn(fn_args: FnArgs) -> None:
    """Trains on the transformed train split and saves the model; ``train_steps`` is the number of steps of 32 rows."""
    features = tft.TFTransformOutput(fn_args.transform_graph_path)
    parsed = tf.io.parse_example(read_sorted(fn_args.train_files), features.transformed_feature_spec())
    measurements, labels = parsed[MEASUREMENTS].numpy(), parsed[LABEL_KEY].numpy().ravel()
    model = train(build_model, measurements, labels, fn_args.train_steps or 300)
    export_model(model, features, fn_args.serving_model_dir)
