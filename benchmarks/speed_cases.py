"""The graphs of the speed benchmark: where they come from, and how a folder with one is made."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np

from benchmarks.common import shared_data, zoo_graph

#: Images to calibrate with: speed hangs little on them.
CALIBRATION = 32
#: Names in a case's folder.
FP32_FILE, CASE_FILE, CALIBRATION_FILE = "fp32.pb", "case.json", "calibration.npy"


@dataclasses.dataclass(frozen=True)
class SpeedCase:
    """A graph to time.

    Attributes:
      title: what tables call it.
      source: ``keras3`` or ``keras2`` (a class of keras.applications, random weights), ``graphs`` (a file of the shared
        data) or ``zoo`` (a model of the registry, made by the shared data's script).
      name: the class, file or model.
      size: height and width of the images.
      output: the output to run; "" for those that the graph shows or the registry names.
    """

    title: str
    source: str
    name: str
    size: int = 224
    output: str = ""

    @property
    def trained(self) -> bool:
        """Whether its weights are those of training, and not random."""
        return self.source == "graphs"


SPEED_CASES = {
    "mobilenet_keras3": SpeedCase("MobileNet V1, Keras 3", "keras3", "MobileNet"),
    "mobilenet_keras2": SpeedCase("MobileNet V1, Keras 2", "keras2", "MobileNet"),
    "resnet50_keras3": SpeedCase("ResNet-50, Keras 3", "keras3", "ResNet50"),
    "resnet50_keras2": SpeedCase("ResNet-50, Keras 2", "keras2", "ResNet50"),
    "inception_keras3": SpeedCase("Inception V3, Keras 3", "keras3", "InceptionV3", 299),
    "inception_keras2": SpeedCase("Inception V3, Keras 2", "keras2", "InceptionV3", 299),
    "mobilenet_025": SpeedCase(
        "MobileNet V1 0.25 (file)", "graphs", "mobilenet_v1_0.25_224_frozen.pb", 224,
        "MobilenetV1/Predictions/Reshape_1",
    ),
    "squeezenet": SpeedCase("SqueezeNet 1.1 (file)", "graphs", "squeezenet1.1.pb"),
    "zoo_resnet50v1_5": SpeedCase("ResNet-50 v1.5 (zoo)", "zoo", "resnet50v1_5", 224, "softmax_tensor"),
    "zoo_ssd_mobilenet": SpeedCase("SSD-MobileNet (zoo)", "zoo", "ssd_mobilenet", 300),
}  # fmt: skip


def make_case(key: str, folder: Path) -> None:
    """Writes a case's FP32 graph, images to calibrate with, float32 or uint8 [images, height, width, 3], and its facts.

    ``case.json`` holds: graph (path), input, output (peers know one), outputs, shape of one image, batch (0: any).
    """
    import quantizer_core as qc
    from quantizer_core.data import read_examples
    from quantizer_core.graph.graph import Graph
    from quantizer_core.graph.summarize import find_inputs, find_outputs, input_specs
    from quantizer_core.preprocessing.decoder import ExampleDecoder

    case = SPEED_CASES[key]
    if case.source.startswith("keras"):
        graph_def, inputs, outputs = _keras(case, folder)
    else:
        graph_def = qc.load_graph(str(_file(case, folder)))
        inputs, outputs = find_inputs(graph_def), find_outputs(graph_def)
        if case.source == "zoo":
            from quantizer_core.zoo import zoo_model

            config = zoo_model(case.name).config
            inputs, outputs = config.inputs, config.outputs
    outputs = (case.output,) if case.output else tuple(outputs)
    (spec,) = input_specs(graph_def, inputs)
    pruned = Graph(graph_def)
    pruned.prune([spec.name, *outputs])
    qc.save_graph(pruned.to_graph_def(), str(folder / FP32_FILE), overwrite=True)
    normalize = "none" if spec.dtype == "uint8" else "inception"
    size = (case.size, case.size)
    decoder = ExampleDecoder(qc.PreprocessConfig(kind="image", normalize=normalize, image_size=size), (spec,))
    examples = itertools.islice(read_examples(shared_data() / "images" / "nips2017_dev"), CALIBRATION)
    np.save(folder / CALIBRATION_FILE, np.stack([decoder.decode(example).feeds[spec.name] for example in examples]))
    facts = {
        "graph": str(folder / FP32_FILE), "input": spec.name, "output": outputs[0], "outputs": outputs,
        "shape": [case.size, case.size, 3], "dtype": spec.dtype, "batch": spec.batch or 0,
    }  # fmt: skip
    (folder / CASE_FILE).write_text(json.dumps(facts), encoding="utf-8")


def _file(case: SpeedCase, folder: Path) -> Path:
    if case.source == "graphs":
        return shared_data() / "graphs" / case.name
    return zoo_graph(case.name, folder / "zoo.pb")


def _keras(case: SpeedCase, folder: Path) -> tuple[object, tuple[str, ...], tuple[str, ...]]:
    """Returns a Keras model with random weights, frozen, and its inputs and outputs."""
    import tensorflow as tf

    import quantizer_core as qc

    tf.random.set_seed(0)
    saved_model = str(folder / "saved_model")
    if case.source == "keras3":
        model = getattr(tf.keras.applications, case.name)(weights=None)
        model.export(saved_model, verbose=False)
    else:
        import tf_keras

        model = getattr(tf_keras.applications, case.name)(weights=None)
        tf.saved_model.save(model, saved_model)
    frozen = qc.freeze_saved_model(saved_model)
    return frozen.graph_def, frozen.inputs, frozen.outputs
