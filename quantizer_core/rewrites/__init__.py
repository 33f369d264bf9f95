"""FP32 → FP32 rewrites that leave a graph with plain convolutions, biases and activations: one file a rule."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Sequence

from quantizer_core.graph.attrs import add_default_attrs
from quantizer_core.graph.graph import Graph, GraphDef, node_of
from quantizer_core.rewrites.fold_batch_norms import fold_batch_norms
from quantizer_core.rewrites.fold_constants import fold_constants
from quantizer_core.rewrites.fold_convolutionwithbias_mul import fold_convolutionwithbias_mul
from quantizer_core.rewrites.fold_old_batch_norms import fold_old_batch_norms
from quantizer_core.rewrites.fold_space_to_batch import fold_space_to_batch
from quantizer_core.rewrites.fold_subdivmul_batch_norms import fold_subdivmul_batch_norms
from quantizer_core.rewrites.fuse_bias_add import fuse_bias_add
from quantizer_core.rewrites.fuse_column_wise_mul import fuse_column_wise_mul
from quantizer_core.rewrites.localize_constants import localize_constants
from quantizer_core.rewrites.mkl_fuse_pad_and_conv import mkl_fuse_pad_and_conv
from quantizer_core.rewrites.nchw_to_nhwc import nchw_to_nhwc
from quantizer_core.rewrites.pad_before_depthwise import pad_before_depthwise
from quantizer_core.rewrites.remove_dropout import remove_dropout
from quantizer_core.rewrites.remove_idle_reshapes import remove_idle_reshapes
from quantizer_core.rewrites.remove_training_nodes import remove_training_nodes
from quantizer_core.rewrites.replace_add_n import replace_add_n
from quantizer_core.rewrites.split_matmul_of_concat import split_matmul_of_concat
from quantizer_core.rewrites.strip_unused import strip_unused
from quantizer_core.rewrites.widen_depthwise import widen_depthwise
from quantizer_core.types import RewriteReport

__all__ = ["RULES", "Rule", "apply_rewrites"]

#: Edits the graph and returns the names of the nodes that it changed, folded or removed. ``inputs`` and ``outputs``
#: are node names; both keep their names and their meaning.
Rule = Callable[[Graph, Sequence[str], Sequence[str]], list[str]]

#: In order of application. strip_unused makes every input a Placeholder, so no later rule can fold through one.
RULES: tuple[Rule, ...] = (
    strip_unused,
    remove_training_nodes,
    fold_constants,
    localize_constants,
    remove_dropout,
    remove_idle_reshapes,
    replace_add_n,
    nchw_to_nhwc,
    widen_depthwise,
    pad_before_depthwise,
    fold_space_to_batch,
    fold_batch_norms,
    fold_subdivmul_batch_norms,
    fold_convolutionwithbias_mul,
    fuse_column_wise_mul,
    fuse_bias_add,
    mkl_fuse_pad_and_conv,
    fold_old_batch_norms,
    split_matmul_of_concat,
)

_LOG = logging.getLogger(__name__)


def apply_rewrites(
    graph_def: GraphDef,
    inputs: Sequence[str],
    outputs: Sequence[str],
    excluded_ops: Collection[str] = (),
    excluded_nodes: Collection[str] = (),
) -> tuple[GraphDef, tuple[RewriteReport, ...]]:
    """Returns an equal graph (up to float rounding) to which no rule applies any more, and what each rule did.

    Args:
      graph_def: a frozen graph; it is not changed.
      inputs: names of the nodes that are fed; any op. They are placeholders in the result, needed or not.
      outputs: names of the nodes that are read; they keep their names and values.
      excluded_ops, excluded_nodes: op types and nodes that stay FP32: see ``Graph.protected``. (What follows a
        layer that is excluded is folded into it as into others.)

    Raises:
      UnknownNodeError: if the graph holds no node of a given name.
      GraphError: if the outputs need a placeholder that is no input, or a fed node's second output.
    """
    fed = [node_of(name) for name in inputs]
    read = [node_of(name) for name in outputs]
    graph = Graph(graph_def)
    position = {node.name: index for index, node in enumerate(graph_def.node)}
    for node in graph:
        add_default_attrs(node)  # rules ask for them
    graph.protected = frozenset(excluded_nodes).union(node.name for node in graph if node.op in excluded_ops)
    changed: dict[str, dict[str, None]] = {rule.__name__: {} for rule in RULES}
    idle = 0  # rules that found nothing to do since the graph was last changed: one may uncover work for an earlier one
    for rule in itertools.cycle(RULES):
        if idle == len(RULES):
            break
        names = rule(graph, fed, read)
        changed[rule.__name__].update(dict.fromkeys(names))
        idle = 0 if names else idle + 1
        _LOG.debug("%s: %d nodes", rule.__name__, len(names))
    reports = (
        RewriteReport(rule, tuple(sorted(names, key=lambda name: position.get(name, len(position)))))
        for rule, names in changed.items()
    )
    return graph.to_graph_def(), tuple(reports)
