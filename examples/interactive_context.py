# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The digits pipeline, component by component
#
# What `make demo` runs as a whole, here one step at a time in TFX's `InteractiveContext`, to look at what each step
# made before the next one runs. Run it from the checkout's folder:
#
# - as a program: `python -m IPython examples/interactive_context.py -- --output build/interactive`,
# - as a notebook: open it in Jupyter with jupytext, or turn it into one: `jupytext --to ipynb FILE`.
#
# A second run in the same folder takes every step from the cache.

# %%
import argparse
import os
from pathlib import Path

from pipelines.quiet import quiet

quiet()  # and oneDNN, which has to be asked for before TensorFlow is imported

from rich.console import Console
from tfx.orchestration.experimental.interactive.interactive_context import InteractiveContext
from tfx.orchestration.metadata import sqlite_metadata_connection_config

from components.artifacts import graph_path
from components.quantizer.executor import PLAN_FILE
from pipelines.digits import make_data
from pipelines.digits.pipeline import create_pipeline
from pipelines.local import metadata_path
from pipelines.record import record_of
from pipelines.report import print_report
from pipelines.serve_back import classify, first_examples, labels
from quantizer_core.graph.files import load_graph
from quantizer_core.graph.summarize import summarize_graph
from quantizer_core.planning.plan import QuantizationPlan

# %%
parser = argparse.ArgumentParser()
parser.add_argument("--output", default="build/interactive", help="Directory for everything that the run makes.")
parser.add_argument("--train_steps", type=int, default=600, help="Training steps of 32 images.")
options, _ = parser.parse_known_args()  # a notebook's kernel has arguments of its own
output = os.path.abspath(options.output)

# %% [markdown]
# The very pipeline that the other runners take. `InteractiveContext` runs its nodes, not the whole.

# %%
make_data.write_digits(os.path.join(output, "data"))
pipeline = create_pipeline(
    pipeline_root=os.path.join(output, "pipeline"),
    data_root=os.path.join(output, "data"),
    serving_root=os.path.join(output, "serving"),
    train_steps=options.train_steps,
)
nodes = {node.id: node for node in pipeline.components}
context = InteractiveContext(
    pipeline_name=pipeline.pipeline_info.pipeline_name,
    pipeline_root=pipeline.pipeline_info.pipeline_root,
    metadata_connection_config=sqlite_metadata_connection_config(metadata_path(output)),
)

# %% [markdown]
# ## The examples

# %%
context.run(nodes["ImportExampleGen"])
(examples,) = nodes["ImportExampleGen"].outputs["examples"].get()
print("ImportExampleGen: splits", examples.splits, "in", examples.uri)

# %% [markdown]
# ## The FP32 model, and its signature on tensors as a frozen graph

# %%
context.run(nodes["Trainer"])
context.run(nodes["Freezer"])
(frozen_graph,) = nodes["Freezer"].outputs["frozen_graph"].get()
quantizable = summarize_graph(load_graph(graph_path(frozen_graph.uri))).quantizable
print("Freezer:", ", ".join(f"{count} {op}" for op, count in quantizable.items()), "in FP32")

# %% [markdown]
# ## The INT8 model: calibrated, converted and judged in one step

# %%
context.run(nodes["Quantizer"])
(model,) = nodes["Quantizer"].outputs["quantized_model"].get()
plan = QuantizationPlan.from_json(Path(model.uri, PLAN_FILE).read_text(encoding="utf-8"))
for op, (quantized, candidates) in plan.counts().items():
    print(f"Quantizer: {quantized} of {candidates} {op} in INT8")

# %% [markdown]
# ## The push, which heeds the blessing, and the report

# %%
context.run(nodes["Pusher"])
record = record_of(nodes.values())
print_report(Console(), record, "Digits: FP32 → INT8")

# %% [markdown]
# ## What was pushed, loaded back and asked

# %%
pushed = record.outputs["pushed_model"].properties
if pushed["pushed"]:
    asked = first_examples(os.path.join(examples.uri, "Split-eval", "*"), 12)
    print("labels ", *labels(asked, make_data.LABEL_KEY))
    print("answers", *classify(str(pushed["pushed_destination"]), asked).argmax(axis=1))
else:
    print("Nothing was pushed: the model was not blessed.")
