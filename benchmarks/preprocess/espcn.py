"""The super-resolution network's input: the luma of the image at half its size, in 0…1."""

import tensorflow as tf

FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}


def preprocess(features):
    image = tf.cast(tf.io.decode_jpeg(features["image/encoded"], channels=3), tf.float32)
    half = tf.image.resize(image, tf.shape(image)[:2] // 2, antialias=True)
    luma = tf.reduce_sum(half * [0.299, 0.587, 0.114], -1, keepdims=True)
    return {"IteratorGetNext": luma / 255}
