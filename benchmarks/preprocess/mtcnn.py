"""The face detector's inputs: the image as BGR 0…255 and its settings."""

import tensorflow as tf

FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}


def preprocess(features):
    image = tf.cast(tf.io.decode_jpeg(features["image/encoded"], channels=3), tf.float32)
    return {
        "input": image[..., ::-1],
        "min_size": tf.constant(40.0),
        "thresholds": tf.constant([0.6, 0.7, 0.7]),
        "factor": tf.constant(0.709),
    }
