"""The Trainer's ``run_fn`` of the digits demo: a small network with every kind of layer that is quantised.

It is named to TFX by its import path, so that nothing has to be packaged. Saves a SavedModel with two signatures:
``serving_default`` on serialized examples and ``TENSOR_SIGNATURE`` on images, which the Freezer freezes.
"""

from __future__ import annotations

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tfx.components.trainer.fn_args_utils import FnArgs

from pipelines.digits.make_data import IMAGE_KEY, IMAGE_SHAPE, LABEL_KEY, NUM_CLASSES
from pipelines.training import read_sorted, train

#: Import path for ``Trainer(run_fn=…)``.
RUN_FN = "pipelines.digits.trainer.run_fn"
#: The signature on images, float32 [batch, 8, 8, 1] in [0, 1] → ``logits``, float32 [batch, 10].
TENSOR_SIGNATURE = "serving_tensors"
#: The Placeholder of the frozen graph behind ``TENSOR_SIGNATURE``.
INPUT_NAME = "images"


def build_model() -> keras.Model:
    """Returns an untrained network, images → logits: a residual block of a depthwise and a pointwise convolution
    between plain convolutions, batch normalisation after each, max and average pooling, two dense layers."""

    def normalised(x: keras.KerasTensor, layer: layers.Layer, relu: bool = True) -> keras.KerasTensor:
        x = layers.BatchNormalization(momentum=0.9)(layer(x))
        return layers.ReLU()(x) if relu else x

    images = keras.Input(IMAGE_SHAPE, name=INPUT_NAME)
    x = normalised(images, layers.Conv2D(16, 3, padding="same", use_bias=False))
    y = normalised(x, layers.DepthwiseConv2D(3, padding="same", use_bias=False))
    y = normalised(y, layers.Conv2D(16, 1, use_bias=False), relu=False)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.MaxPooling2D(2)(x)
    x = normalised(x, layers.Conv2D(32, 3, padding="same", use_bias=False))
    x = layers.AveragePooling2D(2)(x)
    x = layers.Dense(64, activation="relu")(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(NUM_CLASSES, name="logits")(x))


def parse_examples(serialized: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Turns serialized examples, string [n], into images, float32 [n, 8, 8, 1], and labels, int64 [n]."""
    features = tf.io.parse_example(
        serialized,
        {
            IMAGE_KEY: tf.io.FixedLenFeature([int(np.prod(IMAGE_SHAPE))], tf.float32),
            LABEL_KEY: tf.io.FixedLenFeature([], tf.int64, default_value=-1),  # a request carries no label
        },
    )
    return tf.reshape(features[IMAGE_KEY], (-1, *IMAGE_SHAPE)), features[LABEL_KEY]


def export_model(model: keras.Model, directory: str) -> None:
    """Saves a model with its two signatures."""

    @tf.function(input_signature=[tf.TensorSpec((None, *IMAGE_SHAPE), tf.float32, name=INPUT_NAME)])
    def serve_tensors(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"logits": model(images, training=False)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(examples: tf.Tensor) -> dict[str, tf.Tensor]:
        images, _ = parse_examples(examples)
        return {"logits": model(images, training=False)}

    tf.saved_model.save(
        model, directory, signatures={"serving_default": serve_examples, TENSOR_SIGNATURE: serve_tensors}
    )


def run_fn(fn_args: FnArgs) -> None:
    """Trains on the train split and saves the model; ``train_steps`` is the number of steps of 32 images."""
    images, labels = parse_examples(tf.constant(read_sorted(fn_args.train_files)))
    model = train(build_model, images.numpy(), labels.numpy(), fn_args.train_steps or 800)
    export_model(model, fn_args.serving_model_dir)
