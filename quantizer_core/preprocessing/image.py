"""Preprocessing kind ``image``: decode, resize and normalise an encoded image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from quantizer_core.config import PreprocessConfig
from quantizer_core.errors import ConfigError
from quantizer_core.types import TensorSpec

#: Mean and standard deviation of ImageNet's RGB values on the scale 0…1 (torchvision's preprocessing).
_TORCH_MEAN = (0.485, 0.456, 0.406)
_TORCH_STD = (0.229, 0.224, 0.225)
#: ImageNet's RGB mean on the scale 0…255 (the VGG networks in Caffe).
_CAFFE_MEAN = (123.68, 116.78, 103.94)


class ImageLayout(NamedTuple):
    """What the graph's image input asks for."""

    name: str
    dtype: str
    size: tuple[int, int] | None  # None: each image's own
    channels: int
    channels_first: bool


def image_layout(config: PreprocessConfig, inputs: Sequence[TensorSpec]) -> ImageLayout:
    """Returns where the image goes: the one input, of shape [batch, height, width, channels] or channels first.

    Channels are the dimension that is 1 or 3, looked for last and then first; a graph that fixes neither gets RGB
    in the last dimension.

    Raises:
      ConfigError: if the graph has several inputs, the input is no image, its size is unknown or another one, or it is
        fixed and images are to keep theirs.
    """
    if len(inputs) != 1:
        names = ", ".join(spec.name for spec in inputs)
        raise ConfigError(
            f"preprocess kind 'image' feeds one input, the graph has {len(inputs)} ({names}); use 'module'"
        )
    spec = inputs[0]
    shape = (-1, -1, -1, -1) if spec.shape is None else spec.shape
    if len(shape) != 4 or spec.dtype == "string":
        raise ConfigError(
            f"graph input {spec.name!r} is {spec.dtype}{list(shape)}, not a batch of images; use another kind"
        )
    channels_first = shape[3] not in (1, 3) and shape[1] in (1, 3)
    channels = shape[1] if channels_first else shape[3]
    if channels not in (-1, 1, 3):
        raise ConfigError(f"graph input {spec.name!r} has shape {list(shape)}: neither 1 nor 3 channels")
    if channels == 1 and (config.normalize in ("torch", "caffe") or config.bgr):
        raise ConfigError(f"graph input {spec.name!r} has 1 channel; normalize 'torch' and 'caffe' and bgr need 3")
    fixed = shape[2:4] if channels_first else shape[1:3]
    channels_or_rgb = 3 if channels < 0 else channels
    if config.resize == "none":
        if min(fixed) > 0:
            raise ConfigError(f"resize is 'none', but graph input {spec.name!r} takes images of {list(fixed)} alone")
        return ImageLayout(spec.name, spec.dtype, None, channels_or_rgb, channels_first)
    size = config.image_size or fixed
    if min(size) < 0:
        raise ConfigError(
            f"graph input {spec.name!r} does not fix the image's size; give image_size (height, width), or resize "
            "'none' if it takes images of any size"
        )
    for given, wanted in zip(size, fixed, strict=True):
        if wanted >= 0 and given != wanted:
            raise ConfigError(f"image_size is {list(size)}, but graph input {spec.name!r} has shape {list(shape)}")
    return ImageLayout(spec.name, spec.dtype, (size[0], size[1]), channels_or_rgb, channels_first)


def build(config: PreprocessConfig, inputs: Sequence[TensorSpec]) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the function from a serialized example (scalar string) to ``{input name: image without batch dim}``.

    Raises:
      ConfigError: see ``image_layout``.
    """
    layout = image_layout(config, inputs)

    def preprocess(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_single_example(serialized, {config.image_key: tf.io.FixedLenFeature([], tf.string)})
        # The first frame of an animation, as three-dimensional uint8.
        image = tf.io.decode_image(parsed[config.image_key], channels=layout.channels, expand_animations=False)
        image.set_shape([None, None, layout.channels])
        image = tf.cast(image, tf.float32) if layout.size is None else resize(image, layout.size, config.resize)
        image = normalize(image, config.normalize)
        if config.bgr:
            image = image[..., ::-1]
        if layout.channels_first:
            image = tf.transpose(image, [2, 0, 1])
        return {layout.name: _to_dtype(image, tf.as_dtype(layout.dtype))}

    return preprocess


def resize(image: tf.Tensor, size: tuple[int, int], how: str) -> tf.Tensor:
    """Resizes [height, width, channels] bilinearly (half-pixel centres, no antialias) to float32 of ``size``.

    ``stretch`` ignores the aspect ratio. ``crop`` keeps it: the image is scaled to just cover 8/7 of the size (256 for
    224, the usual evaluation of ImageNet models) and the centre is cut out.
    """
    height, width = size
    if how == "stretch":
        return tf.image.resize(image, [height, width], method="bilinear")
    shape = tf.cast(tf.shape(image)[:2], tf.float64)
    scale = tf.maximum(round(height * 8 / 7) / shape[0], round(width * 8 / 7) / shape[1])
    larger = tf.maximum(tf.cast(tf.round(shape * scale), tf.int32), [height, width])
    image = tf.image.resize(image, larger, method="bilinear")
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    return tf.image.crop_to_bounding_box(image, top, left, height, width)


def normalize(image: tf.Tensor, how: str) -> tf.Tensor:
    """Scales RGB 0…255 (float32) as ``PreprocessConfig.normalize`` says.

    Divisions are written as products: TensorFlow's graph optimiser would turn them into such, with other last bits, and
    the values must not depend on where the optimiser runs.
    """
    if how == "unit":
        return image * (1 / 255)
    if how == "inception":
        return image * (1 / 127.5) - 1.0
    if how == "torch":
        scale = tf.constant([1 / deviation for deviation in _TORCH_STD])
        return (image * (1 / 255) - tf.constant(_TORCH_MEAN)) * scale
    if how == "caffe":
        return image - tf.constant(_CAFFE_MEAN)
    return image


def _to_dtype(image: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    if dtype.is_floating:
        return tf.cast(image, dtype)
    return tf.saturate_cast(tf.round(image), dtype)
