"""QuantizationConfig: every choice of a conversion as frozen, validated data that round-trips through JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from quantizer_core.errors import ConfigError, nearest

CALIBRATION_METHODS = ("minmax", "moving_average", "percentile", "kl", "mse")
REDUCE_RANGE = ("auto", "on", "off")
ROUNDINGS = ("second_order", "nearest")
WEIGHT_CLIPPING = ("none", "mse")
PREPROCESS_KINDS = ("tensors", "image", "module")
NORMALIZATIONS = ("none", "unit", "inception", "torch", "caffe")
RESIZES = ("stretch", "crop", "none")


#: Type of a field, as it is written there → the types that its value may have, and how they are called.
_TYPES: dict[str, tuple[tuple[type, ...], str]] = {
    "bool": ((bool,), "true or false"),
    "int": ((int,), "an integer"),
    "float": ((float, int), "a number"),
    "str": ((str,), "a string"),
    "tuple[str, ...]": ((list, tuple), "a list of names"),
    "tuple[int, ...]": ((list, tuple), "a list of integers"),
    "Mapping[str, str]": ((Mapping,), "a JSON object"),
}


def _check_types(instance: Any) -> None:
    """Raises ConfigError for a value of the wrong type: JSON gives what it likes, and "false" would be true."""
    for field in dataclasses.fields(instance):
        types, words = _TYPES.get(str(field.type), ((object,), ""))
        value = getattr(instance, field.name)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types and object not in types):
            raise ConfigError(f"{field.name} must be {words}, not {value!r}")


def _tuples(instance: object, *names: str) -> None:
    for name in names:
        values = tuple(getattr(instance, name))
        for value in values:
            if name != "image_size" and not isinstance(value, str):
                raise ConfigError(f"{name} must be a list of names, and {value!r} is none")
        object.__setattr__(instance, name, values)


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}{nearest(str(value), allowed)}; choose one of {', '.join(allowed)}")


def _from_mapping(cls: type, values: Mapping[str, Any]) -> Any:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{cls.__name__} must be a JSON object, not {type(values).__name__}")
    known = {field.name for field in dataclasses.fields(cls)}
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown option {key!r} in {cls.__name__}{nearest(key, known)}")
    return cls(**values)


@dataclasses.dataclass(frozen=True)
class PreprocessConfig:
    """How a serialized ``tf.Example`` becomes the graph's input tensors (and its label).

    Attributes:
      kind: ``tensors`` reads each graph input from a numeric feature; ``image`` decodes, resizes and normalises an
        encoded image; ``module`` calls ``preprocess`` of ``module_file``.
      features: for ``tensors``: graph input name → feature name; an input not named is read from the feature of its
        own name. The feature is reshaped to the input's shape without its batch dimension and cast to its dtype.
      image_key: for ``image``: the feature with the JPEG, PNG, GIF or BMP bytes.
      image_size: for ``image``: (height, width) in pixels; empty takes them from the graph's input, which must then
        fix them.
      resize: for ``image``: ``stretch`` resizes bilinearly to the size; ``crop`` resizes the shorter side to 8/7 of
        the size and cuts out the centre; ``none`` keeps each image's own, for graphs that take any (detectors), one
        image a step.
      normalize: for ``image``: ``none`` keeps 0…255; ``unit`` x/255; ``inception`` x/127.5 - 1; ``torch``
        (x/255 - mean)/std with ImageNet's RGB statistics; ``caffe`` RGB minus (123.68, 116.78, 103.94).
      bgr: for ``image``: swap the channels to BGR after normalising.
      module_file: for ``module``: a Python file with ``FEATURES`` (feature name → tf.io.FixedLenFeature or
        VarLenFeature) and ``preprocess(features) -> {graph input name: tensor}`` for one example (no batch dimension).
      label_key: the integer feature with the class; empty means that examples carry no label.
      label_offset: added to the label to give the index of the graph's output (1 for 1001-class models).
    """

    kind: str = "tensors"
    features: Mapping[str, str] = dataclasses.field(default_factory=dict)
    image_key: str = "image/encoded"
    image_size: tuple[int, ...] = ()
    resize: str = "stretch"
    normalize: str = "none"
    bgr: bool = False
    module_file: str = ""
    label_key: str = ""
    label_offset: int = 0

    def __post_init__(self) -> None:
        _check_types(self)
        _choice("preprocess kind", self.kind, PREPROCESS_KINDS)
        _choice("resize", self.resize, RESIZES)
        _choice("normalize", self.normalize, NORMALIZATIONS)
        _tuples(self, "image_size")
        object.__setattr__(self, "features", dict(self.features))
        if len(self.image_size) not in (0, 2) or any(not isinstance(s, int) or s <= 0 for s in self.image_size):
            raise ConfigError(f"image_size must be empty or two positive integers, not {self.image_size!r}")
        if self.resize == "none" and self.image_size:
            raise ConfigError(f"resize is 'none', but image_size is {list(self.image_size)}: give one of the two")
        if (self.kind == "module") != bool(self.module_file):
            raise ConfigError("module_file goes with preprocess kind 'module', and only with it")

    def __hash__(self) -> int:
        return hash(json.dumps(dataclasses.asdict(self), sort_keys=True))


@dataclasses.dataclass(frozen=True)
class QuantizationConfig:
    """Every choice of a conversion. Frozen; invalid values raise ``ConfigError`` at construction.

    Attributes:
      inputs: names of the graph's input nodes; empty: all Placeholders.
      outputs: names of the graph's output nodes; empty: the nodes that no one reads.
      excluded_ops: op types that stay FP32.
      excluded_nodes: node names that stay FP32.
      per_channel: one weight scale per output channel where the kernel allows it, else one per tensor.
      calibration_method: how a histogram becomes a range (see ``quantizer_core.calibration.methods``).
      percentile: for ``percentile``: share of the values, in percent, that the range covers; in (50, 100].
      reduce_range: weights of 7 to 8 bits, whose products CPUs without VNNI can sum exactly in 16 bits: ``auto`` asks
        the CPU. See ``quantizer_core.lowering.weights.grid``.
      weight_clipping: ``mse`` clips large weights where the smaller steps of the others make up for it (the limit with
        the least squared error); ``none`` keeps every weight in range.
      equalization: give each channel of a tensor between kernels a scale of its own, where that is predicted to make
        the rounding errors smaller (see ``quantizer_core.planning.equalize``); needs ``per_channel``.
      fine_inputs: carry an input that eight bits cannot hold well in two codes (see ``quantizer_core.planning.fine``).
      mixed_precision: leave the first layers of a classifier FP32 where rounding there is predicted to make much of the
        loss of accuracy, for a small part of the work (see ``quantizer_core.planning.mixed``); needs the sample of
        ``refine_examples``.
      only_faster: leave FP32 what INT8 would make slower: kernels between floats with few products a value (see
        ``quantizer_core.planning.make.ENOUGH_PRODUCTS``), small matrix products, convolutions on small images.
      serving_batch_size: examples a step that the INT8 graph will be run with, unless it fixes its batch: the more,
        the sooner INT8 makes up for what small kernels cost (see ``only_faster``).
      bias_correction: shift biases by the mean error that quantization makes on the calibration data.
      rounding: ``second_order`` rounds each weight with regard to the others, on the sample of ``refine_examples``;
        ``nearest`` each by itself.
      refine_examples: how many of the calibration examples weights and biases are chosen on, layer by layer (64 at
        the most); 0 rounds to nearest and corrects biases by the channel means that calibration gathers anyway.
      batch_size: examples per step in calibration and evaluation (1 where the graph fixes its batch at 1).
      max_batch_bytes: a batch that would take more memory than this is made smaller; what an example takes is estimated
        from the graph's shapes, so that all workers come to the same size (see ``quantizer_core.batch_memory``). Of
        ``refine_examples``, which are alive together, no more are taken than it holds, but four.
      max_bad_fraction: largest share of unreadable examples, in [0, 1], that calibration and evaluation accept.
      preprocess: how an example becomes the graph's inputs.
    """

    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    excluded_ops: tuple[str, ...] = ()
    excluded_nodes: tuple[str, ...] = ()
    per_channel: bool = True
    calibration_method: str = "mse"
    percentile: float = 99.99
    reduce_range: str = "auto"
    weight_clipping: str = "none"
    equalization: bool = True
    fine_inputs: bool = True
    mixed_precision: bool = True
    only_faster: bool = True
    serving_batch_size: int = 1
    bias_correction: bool = True
    rounding: str = "second_order"
    refine_examples: int = 32
    batch_size: int = 16
    max_batch_bytes: int = 1 << 30
    max_bad_fraction: float = 0.01
    preprocess: PreprocessConfig = PreprocessConfig()

    def __post_init__(self) -> None:
        _check_types(self)
        _tuples(self, "inputs", "outputs", "excluded_ops", "excluded_nodes")
        _choice("calibration_method", self.calibration_method, CALIBRATION_METHODS)
        _choice("reduce_range", self.reduce_range, REDUCE_RANGE)
        _choice("rounding", self.rounding, ROUNDINGS)
        _choice("weight_clipping", self.weight_clipping, WEIGHT_CLIPPING)
        if not isinstance(self.refine_examples, int) or self.refine_examples < 0:
            raise ConfigError(f"refine_examples must be an integer of at least 0, not {self.refine_examples!r}")
        preprocess: Any = self.preprocess
        if not isinstance(preprocess, PreprocessConfig):
            object.__setattr__(self, "preprocess", _from_mapping(PreprocessConfig, preprocess))
        if not 50 < self.percentile <= 100:
            raise ConfigError(f"percentile must lie in (50, 100], not {self.percentile!r}")
        for name in ("batch_size", "max_batch_bytes", "serving_batch_size"):
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1:
                raise ConfigError(f"{name} must be a positive integer, not {getattr(self, name)!r}")
        if not 0 <= self.max_bad_fraction <= 1:
            raise ConfigError(f"max_bad_fraction must lie in [0, 1], not {self.max_bad_fraction!r}")

    def without_label(self) -> QuantizationConfig:
        """Returns the choices without a label: what only runs a graph takes examples that have none."""
        return dataclasses.replace(self, preprocess=dataclasses.replace(self.preprocess, label_key=""))

    def to_json(self) -> str:
        """Returns JSON with sorted keys; ``from_json`` gives an equal config back."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> QuantizationConfig:
        """Reads ``to_json``'s form; options left out take their defaults.

        Raises:
          ConfigError: if the text is no JSON object, or names an unknown option (the nearest is named).
        """
        try:
            values = json.loads(text) if text.strip() else {}
        except json.JSONDecodeError as error:
            raise ConfigError(f"the quantization config is no valid JSON: {error}") from None
        return _from_mapping(cls, values)
