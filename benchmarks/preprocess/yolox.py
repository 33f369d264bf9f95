"""YOLOX's inputs: the image scaled into the upper left of 416×416, grey elsewhere, BGR 0…255."""

import tensorflow as tf

SIZE, GREY = 416, 114.0
FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string)}


def preprocess(features):
    image = tf.io.decode_jpeg(features["image/encoded"], channels=3)
    height, width = (tf.cast(size, tf.float32) for size in tf.unstack(tf.shape(image)[:2]))
    ratio = tf.minimum(SIZE / height, SIZE / width)
    size = tf.cast(tf.floor(tf.stack([height, width]) * ratio + 1e-4), tf.int32)
    scaled = tf.round(tf.image.resize(image, size)) - GREY
    padded = tf.pad(scaled, [[0, SIZE - size[0]], [0, SIZE - size[1]], [0, 0]]) + GREY
    return {"images": tf.ensure_shape(padded[..., ::-1], [SIZE, SIZE, 3])}
