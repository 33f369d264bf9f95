"""What the demos' Trainers share: examples in an order that never changes, and a short training that repeats."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

_BATCH_SIZE = 32
_SEED = 1


def read_sorted(patterns: Sequence[str]) -> list[bytes]:
    """Returns the records of a Trainer's files.

    ExampleGen and Transform shuffle anew in every run; sorted, the same data give the same model.
    """
    files = sorted(file for pattern in patterns for file in tf.io.gfile.glob(pattern))
    return sorted(tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator())


def train(build_model: Callable[[], keras.Model], inputs: np.ndarray, labels: np.ndarray, steps: int) -> keras.Model:
    """Returns a classifier, whose outputs are logits, trained for ``steps`` steps of 32 examples.

    Args:
      build_model: makes it.
      inputs: float32 [n, ...].
      labels: the classes, integers [n].
      steps: how many; the learning rate falls to 0 over them.
    """
    keras.utils.set_random_seed(_SEED)
    model = build_model()
    model.compile(
        optimizer=keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    dataset = tf.data.Dataset.from_tensor_slices((inputs, labels)).shuffle(len(labels), seed=_SEED).repeat()
    model.fit(dataset.batch(_BATCH_SIZE), epochs=1, steps_per_epoch=steps, verbose=0)
    return model
