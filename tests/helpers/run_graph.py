"""A user's inference script: runs a frozen graph on the rows of an .npy file. It imports nothing of this product."""

import argparse
import sys

import numpy as np
import tensorflow.compat.v1 as tf

parser = argparse.ArgumentParser()
parser.add_argument("--input_graph", required=True)
parser.add_argument("--feeds", required=True)
parser.add_argument("--input", default="x")
parser.add_argument("--output", required=True)
parser.add_argument("--batch_size", type=int, default=4)
arguments = parser.parse_args()
rows = np.load(arguments.feeds)
with open(arguments.input_graph, "rb") as file:
    graph_def = tf.GraphDef.FromString(file.read())
with tf.Graph().as_default():
    tf.import_graph_def(graph_def, name="import")
    with tf.Session() as session:
        for start in range(0, len(rows), arguments.batch_size):
            batch = rows[start : start + arguments.batch_size]
            session.run(f"import/{arguments.output}:0", {f"import/{arguments.input}:0": batch})
            print(f"{start + len(batch)} rows", file=sys.stderr, end="\r")
