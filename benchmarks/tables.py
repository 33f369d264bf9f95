"""Tables in Markdown pages, one place for each kind of processor, and what they say of the machine."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from quantizer_core.onednn import isa_limit

AMX = "AMX-INT8"
#: INT8 instructions that oneDNN's kernels go by: how tables call them → how Linux does.
INT8_SETS = {"AVX512_VNNI": "avx512_vnni", "AVX_VNNI": "avx_vnni", AMX: "amx_int8"}


def times(median: float, least: float, most: float) -> str:
    """Returns a ratio with its spread as tables show it."""
    return f"{median:.2f} × ({least:.2f}–{most:.2f})"


def write_markdown(path: Path, table: str, kind: str = "accuracy", processor: str | None = None) -> None:
    """Puts a table between its two marks in a Markdown file, one place for each kind of processor.

    A file without these marks gets the table behind that of another processor, or at its end.

    Args:
      path: the file; made if it is missing.
      table: the table.
      kind: what it tables.
      processor: the kind of processor that it was measured on; None for this one's.
    """
    processor = processor or processor_kind()
    begin, end = f"<!-- begin {kind} table, {processor} -->", f"<!-- end {kind} table, {processor} -->"
    text = path.read_text(encoding="utf-8") if path.exists() else "# Accuracy\n"
    if begin not in text or end not in text:
        last = list(re.finditer(rf"<!-- end {re.escape(kind)} table, .* -->\n", text))
        place = last[-1].end() if last else len(text)
        text = f"{text[:place].rstrip()}\n\n{begin}\n{end}\n{text[place:]}"
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(end)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(f"{before}{begin}\n{table}\n{end}{after}", encoding="utf-8")
    temporary.replace(path)


def processor_kind() -> str:
    """Returns the INT8 instructions of this processor: "AMX", or "AVX512_VNNI", "AVX_VNNI" or both, or "no VNNI".

    AVX_VNNI beside AVX512_VNNI tells a Zen 5, whose vector units are twice as wide, from a Zen 4.
    """
    sets, limit = _int8_sets(), isa_limit()
    kind = "AMX" if AMX in sets else ", ".join(sets) or "no VNNI"
    return f"{kind} limited to {limit}" if limit else kind


def machine() -> str:
    """Returns what decides about INT8 on this machine: processor, instruction sets, cores, versions."""
    limit = isa_limit()
    sets = _int8_sets() or ["no VNNI"]
    return ", ".join([_cpu()[0], *sets, f"{os.cpu_count()} cores", *([f"limited to {limit}"] if limit else [])])


def _int8_sets() -> list[str]:
    flags = _cpu()[1]
    return [name for name, flag in INT8_SETS.items() if flag in flags]


def _cpu() -> tuple[str, frozenset[str]]:
    """Returns the processor's name and flags as Linux spells them."""
    model, flags = "unknown processor", frozenset[str]()
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() == "flags":
                flags = frozenset(value.split())
    return model, flags
