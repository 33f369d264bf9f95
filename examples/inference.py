"""Runs a frozen image classifier on a folder of images: a program like your own, which knows nothing of quantisation.

python examples/inference.py --input_graph mobilenet.pb --data_location photos/

Any program that takes a graph, feeds it and fetches its output calibrates as well: ``quantizer convert --callback``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf

v1 = tf.compat.v1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--input_graph", required=True, help="a frozen GraphDef")
    parser.add_argument("--data_location", required=True, help="a folder of JPEG or PNG images")
    parser.add_argument("--input", default="input", help="the graph's input node")
    parser.add_argument("--output", default="MobilenetV1/Predictions/Reshape_1", help="its output node")
    parser.add_argument("--batch_size", type=int, default=1)
    arguments = parser.parse_args()

    graph_def = v1.GraphDef.FromString(Path(arguments.input_graph).read_bytes())
    endings = (".png", ".jpg", ".jpeg")
    paths = sorted(path for path in Path(arguments.data_location).rglob("*") if path.suffix.lower() in endings)
    if not paths:
        parser.error(f"--data_location {arguments.data_location}: there is no image ({', '.join(endings)})")
    with v1.Graph().as_default() as graph:
        v1.import_graph_def(graph_def, name="")
        images, output = (graph.get_tensor_by_name(f"{name}:0") for name in (arguments.input, arguments.output))
        file = v1.placeholder(tf.string, [])
        image = tf.io.decode_image(tf.io.read_file(file), channels=3, expand_animations=False)
        image.set_shape([None, None, 3])
        pixels = tf.image.resize(image, images.shape[1:3]) * (1 / 127.5) - 1.0
        with v1.Session() as session:
            for start in range(0, len(paths), arguments.batch_size):
                names = paths[start : start + arguments.batch_size]
                batch = np.stack([session.run(pixels, {file: str(name)}) for name in names])
                for name, scores in zip(names, session.run(output, {images: batch}), strict=True):
                    print(f"{name.name}: class {scores.argmax()} ({scores.max():.0%})")


if __name__ == "__main__":
    main()
