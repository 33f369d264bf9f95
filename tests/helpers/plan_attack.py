"""Feeds and fetches every tensor of random INT8 graphs, on batches of 0, 1 and 3; its process might end.

``python -m tests.helpers.plan_attack FIRST COUNT`` prints one line of JSON: graphs, runs, errors.
"""

from __future__ import annotations

import json
import sys
from collections import Counter

import numpy as np
import tensorflow.compat.v1 as tf

from quantizer_core.errors import GraphError
from tests.helpers.plan_checks import converted

#: TensorFlow's optimiser writes x · sigmoid(x) as one op, the sigmoid fed or not: feeding that is an error of its own.
FUSED = "was not found in the Graph"


def attack(seed: int, counts: Counter[str]) -> None:
    """Attacks one random graph, if anything of it runs in INT8."""
    try:
        prepared, conversion, _, data = converted(seed)
    except GraphError:
        return
    counts["graphs"] += 1
    outputs = [f"{name}:0" for name in prepared.outputs]
    rng = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    for optimize in (False, True):
        config = tf.ConfigProto(intra_op_parallelism_threads=1)
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimize
        with tf.Graph().as_default() as graph, tf.Session(graph=graph, config=config) as session:
            tf.import_graph_def(conversion.graph_def, name="")
            made = [t for operation in graph.get_operations() for t in operation.outputs if t.op.type != "Const"]
            if not optimize:
                values = dict(zip((t.name for t in made), session.run(made, {"x:0": data}), strict=True))
            floats = [t for t in made if t.dtype == tf.float32 and t.shape.rank and t.name != "x:0"]
            pairs = [[made[i] for i in rng.choice(len(made), 2)] for _ in range(3)]
            for size in (3, 1, 0):
                fed = {"x:0": data[:size]}
                for fetched in [*([t] for t in made), *pairs, made]:
                    _run(session, [*outputs, *fetched], fed, size, counts, optimize)
                for tensor in floats:  # the rest of the batch's size, and of another
                    for other in {size, 3, 0}:
                        rows = values[tensor.name]  # one a position where a product runs over those of all examples
                        part = rows[: len(rows) * other // len(data)]
                        batch = size if other == size else 0
                        _run(session, outputs, {**fed, tensor: part}, batch, counts, optimize)


def _run(session: tf.Session, fetches: list, feeds: dict, batch: int, counts: Counter[str], optimizes: bool) -> None:
    """Runs once; ``batch`` is that of all that is fed, 0 if it is empty or not the same."""
    counts["runs"] += 1
    try:
        session.run(fetches, feeds)
    except tf.errors.OpError as error:
        fused = optimizes and FUSED in error.message
        # No values, or not as many of one tensor as of another, may be an error; values of one batch never.
        allowed = isinstance(error, tf.errors.InvalidArgumentError) and not batch
        if not fused and not allowed:
            raise AssertionError(f"batch {batch}, fed {list(feeds)}, fetched {fetches}") from error
        counts["errors"] += 1


def main() -> None:
    first, count = (int(word) for word in sys.argv[1:])
    counts: Counter[str] = Counter()
    for seed in range(first, first + count):
        attack(seed, counts)
    sys.stdout.write(json.dumps(counts) + "\n")


if __name__ == "__main__":
    main()
