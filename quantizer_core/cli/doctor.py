"""``quantizer doctor``: whether INT8 graphs will run right on this machine, and what decides that."""

from __future__ import annotations

from typing import Any

import click

from quantizer_core.onednn import SWITCH


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check this machine: TensorFlow, oneDNN, the processor, and every INT8 kernel against exact arithmetic.

    Exit code 0 if INT8 graphs run right here, 1 if not.
    """
    import json

    found = diagnose()
    click.echo(json.dumps(found, indent=2) if as_json else as_text(found))
    if not found["healthy"]:
        ctx.exit(1)


def diagnose() -> dict[str, Any]:
    """Returns the facts about this machine and the results of the kernels' quick check, as JSON takes them.

    ``healthy`` says whether INT8 graphs will run right. Where they cannot run at all no kernel is tried.
    """
    import dataclasses
    import math
    import platform
    from importlib import metadata

    from quantizer_core.errors import MachineError
    from quantizer_core.lowering.conformance import quick_check
    from quantizer_core.lowering.safe import SAFE
    from quantizer_core.machine import describe_machine
    from quantizer_core.runtime import check_machine

    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return ""

    problem = ""
    try:
        check_machine()
    except MachineError as error:
        problem = str(error)
    checks = [] if problem else list(quick_check())
    failed = [check.name for check in checks if not check.passed]
    if failed and not problem:
        problem = f"{len(failed)} of {len(checks)} kernels are wrong here: {', '.join(failed)}"
    return {
        "healthy": not problem,
        "problem": problem,
        "python": platform.python_version(),
        **describe_machine(),
        "packages": {
            name: version(name) for name in ("tfx-quantizer", "tensorflow", "numpy", "apache-beam", "tfx", "click")
        },
        "kernels": [dataclasses.asdict(entry) for entry in SAFE],
        "checks": [
            {
                "kernel": check.name,
                "error": check.error if math.isfinite(check.error) else None,
                "bound": check.bound,
                "passed": check.passed,
                "reason": check.reason,
            }
            for check in checks
        ],
    }


def as_text(found: dict[str, Any]) -> str:
    """Returns the tables for people."""
    import io

    from rich.console import Console
    from rich.table import Table

    text = io.StringIO()
    console = Console(file=text, width=140, color_system=None)
    facts = Table(show_header=False, box=None, pad_edge=False)
    switch = found[SWITCH]
    asked = "; this program asks for it, others have to" if switch is None and found["onednn"] else ""
    features = ", ".join(f"{name} {'yes' if has else 'no'}" for name, has in found["cpu_features"].items())
    bits = "8 bits (VNNI)" if found["vnni_used"] else "7 to 8 bits (no VNNI used: 16-bit sums must not overflow)"
    for name, value in (
        ("TensorFlow", f"{found['tensorflow']}, Python {found['python']}"),
        ("oneDNN", f"{'on' if found['onednn'] else 'OFF'} ({SWITCH} {_or_unset(switch)}{asked})"),
        ("processor", found["cpu"]),
        ("features", features),
        ("ONEDNN_MAX_CPU_ISA", _or_unset(found["ONEDNN_MAX_CPU_ISA"])),
        ("weights", bits),
        ("packages", ", ".join(f"{name} {version or 'missing'}" for name, version in found["packages"].items())),
    ):
        facts.add_row(name, value)
    console.print(facts)
    console.print()
    safe = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("op", "INT8 kernel", "reads", "writes", "fuses", "padding", "dilation"):
        safe.add_column(title, no_wrap="op" in title or "kernel" in title)
    for entry in found["kernels"]:
        words = [" ".join(entry[key]) for key in ("sources", "results", "fusions", "paddings")]
        safe.add_row(entry["op"], entry["kernel"], *words, "yes" if entry["dilation"] else "")
    console.print(safe)
    if found["checks"]:
        console.print()
        checks = Table(box=None, pad_edge=False, header_style="bold")
        checks.add_column("kernel tried here")
        checks.add_column("error in codes", justify="right")
        checks.add_column("")
        for check in found["checks"]:
            error = "–" if check["error"] is None else f"{check['error']:.3f}"
            checks.add_row(check["kernel"], error, "ok" if check["passed"] else f"FAILED {check['reason']}".strip())
        console.print(checks)
    verdict = "INT8 graphs run right here" if found["healthy"] else f"NOT READY: {found['problem']}"
    return "\n".join([*(line.rstrip() for line in text.getvalue().splitlines()), "", verdict])


def _or_unset(value: str | None) -> str:
    return "unset" if value is None else value
