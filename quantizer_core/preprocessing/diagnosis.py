"""Says in words why an example could not be preprocessed. Only called after TensorFlow has refused it."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import NamedTuple

import tensorflow as tf

from quantizer_core.errors import DataError, nearest
from quantizer_core.preprocessing import tensors
from quantizer_core.preprocessing.features import shape_feature
from quantizer_core.preprocessing.preprocessor import Preprocessor
from quantizer_core.types import TensorSpec

#: Features with the name of the file that an example was made of, as ``read_folder`` and most TFRecords have them.
_FILE_KEYS = ("image/filename", "filename")
#: How JPEG, PNG, GIF and BMP files begin.
_IMAGE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"BM")
_KINDS = {"bytes_list": "bytes", "float_list": "floats", "int64_list": "integers", None: "nothing"}


class _Finding(NamedTuple):
    """What is wrong with an example: the kind of fault (``DataError.reason``), and a sentence on this example."""

    reason: str
    text: str


def diagnose(serialized: bytes, preprocessor: Preprocessor, message: str) -> DataError:
    """Returns an error that names the feature at fault, what the example holds instead, and its file if it tells it.

    ``message`` is TensorFlow's own, used where nothing better is known.
    """
    try:
        example = parsed_example(serialized)
    except DataError as error:
        return error
    found = _find(example, preprocessor, message)
    names = [example.features.feature[key].bytes_list.value for key in _FILE_KEYS if key in example.features.feature]
    file = next((f" (file {value[0].decode(errors='replace')!r})" for value in names if value), "")
    return DataError(found.text + file, reason=found.reason)


def parsed_example(serialized: bytes) -> tf.train.Example:
    """Parses a record.

    Raises:
      DataError: if it is no ``tf.Example``.
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(serialized)
    except Exception:  # protobuf's implementations raise different classes
        text = f"a record of {len(serialized)} bytes is no serialized tf.Example"
        raise DataError(text, reason="damaged_record") from None
    return example


def _find(example: tf.train.Example, preprocessor: Preprocessor, message: str) -> _Finding:
    config = preprocessor.config
    features = example.features.feature
    finding = None
    if config.kind == "tensors":
        wanted = tensors.feature_names(config, preprocessor.inputs)
        for spec in preprocessor.inputs:
            finding = finding or _with_hint(
                example, wanted[spec.name], _tensor_finding(example, wanted[spec.name], spec)
            )
    elif config.kind == "image":
        finding = _image_finding(example, config.image_key)
    if finding is None and config.label_key:
        finding = _label_finding(example, config.label_key)
    if finding is None and config.kind == "module":
        first = message.strip().splitlines()[0] if message.strip() else "unknown error"
        text = f"preprocess of {config.module_file!r} refused an example with {_holds(features)}: {first}"
        finding = _Finding("refused_by_module", text)
    return finding or _Finding("not_preprocessed", f"an example cannot be preprocessed: {message.strip()}")


def _holds(names: Collection[str]) -> str:
    shown = ", ".join(sorted(names)[:8])
    return f"the features {shown}{', …' if len(names) > 8 else ''}" if names else "no features"


def _missing(example: tf.train.Example, name: str, what: str, reason: str = "missing_feature") -> _Finding | None:
    features = example.features.feature
    if name in features:
        return None
    text = f"the example has no {what} {name!r}{nearest(name, features)} (it holds {_holds(features)})"
    return _Finding(reason, text)


def _count(feature: tf.train.Feature) -> tuple[str, int]:
    kind = feature.WhichOneof("kind")
    return _KINDS[kind], len(getattr(feature, kind).value) if kind else 0


def _tensor_finding(example: tf.train.Example, name: str, spec: TensorSpec) -> _Finding | None:
    missing = _missing(example, name, f"feature for graph input {spec.name!r}:")
    if missing:
        return missing
    feature = example.features.feature[name]
    kind, count = _count(feature)
    shape = tensors.example_shape(spec)
    start = f"feature {name!r} holds {count} {kind}, but graph input {spec.name!r} "
    if spec.dtype == "string":
        if kind != "bytes":
            return _Finding("wrong_type", start + "is a string")
    elif kind == "bytes":
        length, size = sum(map(len, feature.bytes_list.value)), tf.as_dtype(spec.dtype).size
        start = f"feature {name!r} holds {length} raw bytes, but graph input {spec.name!r} "
        if length % size:
            return _Finding("wrong_shape", start + f"is {spec.dtype}, of {size} bytes each")
        count = length // size
    elif not tf.as_dtype(spec.dtype).is_floating and not _exact(feature, spec.dtype):
        text = f"feature {name!r} holds {kind} that are no {spec.dtype}, which graph input {spec.name!r} takes"
        return _Finding("wrong_type", text)
    if tensors.shape_is_open(shape):
        return _open_shape_finding(example, name, spec, count)
    assert shape is not None
    known = math.prod(size for size in shape if size >= 0)
    fits = count == known if -1 not in shape else (known > 0 and count % known == 0)
    return None if fits else _Finding("wrong_shape", start + f"takes {spec.dtype}{list(shape)} for each example")


def _with_hint(example: tf.train.Example, name: str, finding: _Finding | None) -> _Finding | None:
    """Adds what to do about a feature that will not do as numbers because it holds an encoded image."""
    data = example.features.feature[name].bytes_list.value if name in example.features.feature else ()
    if finding is None or not data or not data[0].startswith(_IMAGE_STARTS):
        return finding
    hint = "; it is an encoded image: say how to prepare it (--preprocess, or preprocess kind 'image')"
    return _Finding(finding.reason, finding.text + hint)


def _open_shape_finding(example: tf.train.Example, name: str, spec: TensorSpec, count: int) -> _Finding | None:
    shape, key = tensors.example_shape(spec), shape_feature(name)
    stored = list(example.features.feature[key].int64_list.value) if key in example.features.feature else None
    open_shape = "unknown rank" if shape is None else f"shape {list(shape)}"
    if stored is None:
        if shape is None and count == 1:
            return None
        text = f"graph input {spec.name!r} has {open_shape}: the example needs an integer feature {key!r}"
        return _Finding("missing_feature", text)
    agrees = shape is None or (
        len(stored) == len(shape) and all(b in (-1, a) for a, b in zip(stored, shape, strict=True))
    )
    if math.prod(stored) == count and agrees:
        return None
    text = (
        f"feature {key!r} is {stored}, which fits neither {count} values nor graph input {spec.name!r} of {open_shape}"
    )
    return _Finding("wrong_shape", text)


def _exact(feature: tf.train.Feature, dtype: str) -> bool:
    kind = tf.as_dtype(dtype)
    low, high = (0, 1) if kind.is_bool else (kind.min, kind.max)
    values = feature.float_list.value or feature.int64_list.value
    return all(low <= value <= high and value == int(value) for value in values)


def _image_finding(example: tf.train.Example, key: str) -> _Finding | None:
    missing = _missing(example, key, "image feature")
    if missing:
        return missing
    kind, count = _count(example.features.feature[key])
    if kind != "bytes" or count != 1:
        return _Finding("wrong_type", f"image feature {key!r} holds {count} {kind}, not the bytes of one image")
    data = example.features.feature[key].bytes_list.value[0]
    try:
        tf.io.decode_image(data, expand_animations=False)
    except tf.errors.OpError:
        if data.startswith(_IMAGE_STARTS):
            return _Finding(
                "bad_image", f"image feature {key!r} holds an image of {len(data)} bytes that is damaged or cut short"
            )
        return _Finding(
            "bad_image",
            f"image feature {key!r} holds {len(data)} bytes that are no JPEG, PNG, GIF or BMP image "
            f"(they start with {data[:8]!r})",
        )
    return None


def _label_finding(example: tf.train.Example, key: str) -> _Finding | None:
    missing = _missing(example, key, "label feature", "missing_label")
    if missing:
        return missing
    kind, count = _count(example.features.feature[key])
    if (kind, count) == ("integers", 1):
        return None
    return _Finding("bad_label", f"label feature {key!r} holds {count} {kind}, not one integer")
