"""Preprocess kind ``image`` against the same steps done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import tensorflow as tf

from quantizer_core.config import PreprocessConfig
from quantizer_core.data.examples import bytes_feature, int64_feature, serialize
from quantizer_core.errors import ConfigError, DataError
from quantizer_core.preprocessing import ExampleDecoder
from quantizer_core.types import TensorSpec

NHWC = TensorSpec("input", "float32", (-1, 8, 6, 3))


def picture(height: int = 13, width: int = 17, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), np.uint8)


def record(data: bytes, key: str = "image/encoded", label: int | None = None) -> bytes:
    features = {key: bytes_feature([data])}
    if label is not None:
        features["label"] = int64_feature([label])
    return serialize(features)


def png(image: np.ndarray) -> bytes:
    return tf.io.encode_png(image).numpy()


def decode(data: bytes, spec: TensorSpec = NHWC, **options: object) -> np.ndarray:
    config = PreprocessConfig(kind="image", **options)
    return ExampleDecoder(config, [spec]).decode(record(data)).feeds[spec.name]


def test_an_image_of_the_right_size_comes_out_unchanged() -> None:
    image = picture(8, 6)
    np.testing.assert_array_equal(decode(png(image)), image.astype(np.float32), strict=True)


def test_jpeg_is_decoded_as_tensorflow_does() -> None:
    data = tf.io.encode_jpeg(picture(8, 6)).numpy()
    np.testing.assert_array_equal(decode(data), tf.io.decode_image(data).numpy().astype(np.float32))


def test_stretch_equals_tf_image_resize() -> None:
    image = picture()
    np.testing.assert_array_equal(decode(png(image)), tf.image.resize(image, (8, 6)).numpy())


@pytest.mark.parametrize("shape", [(13, 17), (300, 20), (20, 300), (7, 7), (4, 3)])
def test_crop_keeps_the_aspect_ratio_and_cuts_the_centre(shape: tuple[int, int]) -> None:
    image = picture(*shape)
    result = decode(png(image), TensorSpec("input", "float32", (-1, 7, 7, 3)), resize="crop")
    scale = 8 / min(shape)  # 7 · 8/7 for the shorter side
    larger = [round(side * scale) for side in shape]
    resized = tf.image.resize(image, larger).numpy()
    top, left = (larger[0] - 7) // 2, (larger[1] - 7) // 2
    np.testing.assert_array_equal(result, resized[top : top + 7, left : left + 7])


MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("none", lambda x: x),
        ("unit", lambda x: x / 255),
        ("inception", lambda x: x / 127.5 - 1),
        ("torch", lambda x: (x / 255 - MEAN) / STD),
        ("caffe", lambda x: x - np.array([123.68, 116.78, 103.94])),
    ],
)
@pytest.mark.parametrize("bgr", [False, True])
def test_normalisation_follows_its_formula(name: str, formula, bgr: bool) -> None:
    image = picture(8, 6)
    wanted = formula(image.astype(np.float64))
    result = decode(png(image), normalize=name, bgr=bgr)
    np.testing.assert_allclose(result, wanted[..., ::-1] if bgr else wanted, rtol=1e-5, atol=2e-6)


def test_channels_first_uint8_and_gray_inputs() -> None:
    image = picture(8, 6)
    first = decode(png(image), TensorSpec("x", "float32", (-1, 3, 8, 6)))
    np.testing.assert_array_equal(first, image.transpose(2, 0, 1))
    whole = decode(png(picture()), TensorSpec("x", "uint8", (1, 8, 6, 3)))
    np.testing.assert_array_equal(
        whole, np.round(tf.image.resize(picture(), (8, 6)).numpy()).astype(np.uint8), strict=True
    )
    gray = picture(8, 6, 1)
    np.testing.assert_array_equal(decode(png(gray), TensorSpec("x", "float32", (-1, 8, 6, 1))), gray)


def test_gray_file_for_an_rgb_input_and_alpha_is_dropped() -> None:
    gray = picture(8, 6, 1)
    np.testing.assert_array_equal(decode(png(gray)), np.repeat(gray, 3, axis=2))
    rgba = picture(8, 6, 4)
    np.testing.assert_array_equal(decode(png(rgba)), rgba[..., :3])


def test_image_size_serves_a_graph_that_does_not_fix_it() -> None:
    for shape in [(-1, -1, -1, 3), None]:
        assert decode(png(picture()), TensorSpec("x", "float32", shape), image_size=(5, 4)).shape == (5, 4, 3)


def test_label_and_key() -> None:
    config = PreprocessConfig(kind="image", image_key="jpg", label_key="label", label_offset=1)
    result = ExampleDecoder(config, [NHWC]).decode(record(png(picture()), "jpg", 7))
    assert result.label == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff\xd8\xff\xe0" + bytes(60), r"'image/encoded' holds an image of 64 bytes that is damaged or cut short"),
        (b"no image", r"'image/encoded' holds 8 bytes that are no JPEG, PNG, GIF or BMP image"),
        (b"", "'image/encoded' holds 0 bytes that are no"),
        (png(picture())[:60], "'image/encoded' holds an image of 60 bytes that is damaged"),
    ],
)
def test_an_undecodable_image_is_named(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode(data)


def test_a_missing_image_feature_is_named() -> None:
    decoder = ExampleDecoder(PreprocessConfig(kind="image"), [NHWC])
    with pytest.raises(DataError, match="no image feature 'image/encoded'; did you mean 'image/encode'"):
        decoder.decode(record(png(picture()), "image/encode"))
    with pytest.raises(DataError, match="image feature 'image/encoded' holds 2 integers"):
        decoder.decode(serialize({"image/encoded": int64_feature([1, 2])}))


def test_images_keep_their_size_for_graphs_that_take_any() -> None:
    specs = [TensorSpec("x", "uint8", (-1, -1, -1, 3))]
    decoder = ExampleDecoder(PreprocessConfig(kind="image", resize="none"), specs)
    found = decoder.decode(record(png(picture()))).feeds["x"]
    np.testing.assert_array_equal(found, picture())
    assert found.dtype == np.uint8
    with pytest.raises(ConfigError, match="resize is 'none', but image_size is"):
        PreprocessConfig(kind="image", resize="none", image_size=(4, 4))


@pytest.mark.parametrize(
    ("specs", "options", "message"),
    [
        ([NHWC, TensorSpec("b", "float32", ())], {}, r"feeds one input, the graph has 2 \(input, b\)"),
        ([TensorSpec("x", "float32", (-1, 10))], {}, r"'x' is float32\[-1, 10\], not a batch of images"),
        ([TensorSpec("x", "string", ())], {}, "not a batch of images"),
        ([TensorSpec("x", "float32", (-1, -1, -1, 3))], {}, "does not fix the image's size; give image_size"),
        ([NHWC], {"resize": "none"}, "resize is 'none', but graph input 'input' takes images of"),
        ([NHWC], {"image_size": (9, 6)}, r"image_size is \[9, 6\], but graph input 'input' has shape"),
        ([TensorSpec("x", "float32", (-1, 8, 6, 5))], {}, "neither 1 nor 3 channels"),
        ([TensorSpec("x", "float32", (-1, 8, 6, 1))], {"normalize": "torch"}, "'x' has 1 channel"),
    ],
)
def test_a_graph_that_takes_no_image_is_a_config_error(specs: list, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ExampleDecoder(PreprocessConfig(kind="image", **options), specs)


def test_real_images_decode(shared_data) -> None:
    from quantizer_core.data import read_examples

    records = list(read_examples(shared_data / "images" / "cifar10"))[:20]
    spec = TensorSpec("input", "float32", (-1, 32, 32, 3))
    decoder = ExampleDecoder(PreprocessConfig(kind="image", normalize="unit", label_key="image/class/label"), [spec])
    results = [decoder.decode(record) for record in records]
    assert {result.label for result in results} == set(range(10))
    assert all(0 <= result.feeds["input"].min() < result.feeds["input"].max() <= 1 for result in results)
