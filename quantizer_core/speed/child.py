"""One graph in one setting, in a process of its own: reads a request as JSON, prints the answer as JSON.

A process's thread pools are made by its first session and never change: hence a process for each setting.
"""

from __future__ import annotations

import collections
import gc
import json
import os
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from quantizer_core.onednn import use_onednn

#: Steps that do not count, as kernels are made in them; steps whose nodes are timed.
WARM_UP, TRACED = 3, 20
_OP = re.compile(r" = (\w+)\(")


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Times a graph's steps (``milliseconds``, ``steps``) or, if ``trace`` is asked for, its ``nodes``."""
    from quantizer_core.graph.files import load_graph
    from quantizer_core.runtime import GraphSession
    from quantizer_core.speed.feeds import load_feeds
    from quantizer_core.types import TensorSpec

    inputs = [TensorSpec.from_dict(values) for values in request["inputs"]]
    feeds = load_feeds(Path(request["feeds"]))
    graph = load_graph(request["graph"], binary=True)
    with GraphSession(
        graph, inputs, request["outputs"], threads=request["threads"], bfloat16=request["bfloat16"]
    ) as session:
        for _ in range(WARM_UP):
            session.run(feeds)
        if request.get("trace"):
            return {"nodes": _nodes(session, feeds, request["timeline"])}
        times: list[float] = []
        gc.disable()  # as timeit does
        end = time.perf_counter() + request["seconds"]
        while len(times) < 3 or time.perf_counter() < end:
            start = time.perf_counter()
            session.run(feeds)
            times.append(1e3 * (time.perf_counter() - start))
    return {"milliseconds": statistics.median(times), "steps": len(times)}


def _nodes(session: Any, feeds: Any, timeline: str) -> list[tuple[str, str, float]]:
    sums: dict[tuple[str, str], float] = collections.defaultdict(float)
    for _ in range(WARM_UP):  # a traced step has kernels of its own
        session.trace(feeds)
    for _ in range(TRACED):
        stats = session.trace(feeds)
        for device in stats.dev_stats:
            for node in device.node_stats:
                op = _OP.search(node.timeline_label)
                key = (node.node_name, op[1] if op else node.node_name)
                sums[key] += (node.op_end_rel_micros - node.op_start_rel_micros) / TRACED
    if timeline:
        from tensorflow.python.client.timeline import Timeline

        Path(timeline).write_text(Timeline(stats).generate_chrome_trace_format(), encoding="utf-8")
    return sorted(((node, op, time) for (node, op), time in sums.items()), key=lambda each: (-each[2], each[0]))


if __name__ == "__main__":
    use_onednn()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from quantizer_core.errors import QuantizerError

    try:
        sys.stdout.write(json.dumps(answer(json.load(sys.stdin))) + "\n")
    except (QuantizerError, OSError) as error:
        sys.exit(" ".join(str(error).split()))
