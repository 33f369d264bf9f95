"""Known models: how each is launched, converted, calibrated and judged; no TensorFlow needed to read them."""

from quantizer_core.zoo.registry import ZooModel, load_models, zoo_model

__all__ = ["ZooModel", "load_models", "zoo_model"]
