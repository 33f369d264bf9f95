"""``quantizer diff-ranges``: how far two calibrations lie apart, tensor by tensor."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import click

from quantizer_core.config import CALIBRATION_METHODS

if TYPE_CHECKING:
    from quantizer_core.calibration.diff import RangeChange
    from quantizer_core.calibration.saved import SavedCalibration
    from quantizer_core.types import Range


@click.command("diff-ranges")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.option("--method", type=click.Choice(CALIBRATION_METHODS), default="mse", show_default=True,
              help="How values become a range; minmax compares the extremes of all values.")  # fmt: skip
@click.option("--percentile", type=float, default=99.99, show_default=True, help="For --method percentile.")
@click.option("--top", type=click.IntRange(min=1), metavar="K", help="Show the K largest changes. [default: all]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def diff_ranges(a: str, b: str, method: str, percentile: float, top: int | None, as_json: bool) -> None:
    """Compare the ranges of two calibrations, A and B, largest change first.

    Each is a file that convert --save_calibration wrote, or the directory of a pipeline's CalibrationRanges. The change
    is how far the further of a range's two bounds moves, in percent of the longer range. B outside A is the share of
    B's values that A's range would clip.

    \b
    quantizer diff-ranges monday.ranges tuesday.ranges --top 10
    """
    from quantizer_core.calibration.diff import diff_statistics
    from quantizer_core.calibration.saved import load_calibration
    from quantizer_core.errors import ConfigError

    if not 50 < percentile <= 100:
        raise ConfigError(f"--percentile must lie in (50, 100], not {percentile}")
    first, second = load_calibration(a), load_calibration(b)
    changes = diff_statistics(first.run.statistics, second.run.statistics, method, percentile)
    if as_json:
        import json

        click.echo(json.dumps(_facts(first, second, changes, top), indent=2, sort_keys=True))
    else:
        click.echo(_text(first, second, changes, top))


def _facts(
    a: SavedCalibration, b: SavedCalibration, changes: tuple[RangeChange, ...], top: int | None
) -> dict[str, Any]:
    """Returns everything as JSON data: a change is None where one of the two has no range."""
    return {
        "identical": a.run == b.run,
        "same_graph": a.fingerprint == b.fingerprint,
        "same_preprocessing": a.preprocess == b.preprocess,
        **{
            name: {
                "source": saved.source,
                "core_version": saved.core_version,
                "examples": saved.run.reads.read,
                "skipped_examples": saved.run.reads.skipped,
                "excluded_nodes": list(saved.excluded_nodes),
                "excluded_ops": list(saved.excluded_ops),
            }
            for name, saved in (("a", a), ("b", b))
        },
        "tensors": [
            {
                "tensor": change.tensor,
                "a": None if change.a is None else list(change.a),
                "b": None if change.b is None else list(change.b),
                "examples_a": change.examples_a,
                "examples_b": change.examples_b,
                "change": change.change if math.isfinite(change.change) else None,
                "outside": None if math.isnan(change.outside) else change.outside,
                "identical": change.identical,
            }
            for change in changes[:top]
        ],
    }


def _text(a: SavedCalibration, b: SavedCalibration, changes: tuple[RangeChange, ...], top: int | None) -> str:
    from quantizer_core.cli.tables import plain_table

    lines = [_title("A", a), _title("B", b)]
    if a.fingerprint != b.fingerprint:
        lines.append("they are of different graphs: tensors are compared by their names")
    if a.preprocess != b.preprocess:
        lines.append("they were made with different preprocessing")
    columns = ("change %", "B outside A %", "examples A", "examples B", "range in A", "range in B", "tensor")
    shown = changes[:top]
    lines += ["", plain_table(columns, [_row(change) for change in shown], right=4), ""]
    hidden = f" ({len(changes) - len(shown)} smaller changes not shown)" if len(shown) < len(changes) else ""
    same = sum(change.identical for change in changes)
    missing = sum((change.a is None) != (change.b is None) for change in changes)
    lines.append(f"{len(changes)} tensors{hidden}: {same} identical, {missing} with a range in one of the two only")
    return "\n".join(lines)


def _title(name: str, saved: SavedCalibration) -> str:
    reads = saved.run.reads
    source = f" of {saved.source}" if saved.source else ""
    left_out = f", {reads.skipped} left out" if reads.skipped else ""
    return f"{name}: {reads.read} examples{source}{left_out}, by version {saved.core_version}"


def _row(change: RangeChange) -> tuple[str, ...]:
    return (
        f"{100 * change.change:.2f}" if math.isfinite(change.change) else "–",
        "–" if math.isnan(change.outside) else f"{100 * change.outside:.3f}",
        str(change.examples_a),
        str(change.examples_b),
        _range(change.a),
        _range(change.b),
        change.tensor,
    )


def _range(found: Range | None) -> str:
    return "–" if found is None else f"{found.min:.4g} … {found.max:.4g}"
