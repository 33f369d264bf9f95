"""docs/int8_graphs.md tells where each rewrite of 2020 is, and it is there."""

from __future__ import annotations

import re

from quantizer_core.rewrites import RULES
from tests.conftest import REPO_ROOT

NAMES = {
    *("strip_unused", "remove_training_nodes", "fold_constants", "fold_batch_norms", "fold_old_batch_norms"),
    *("fuse_column_wise_mul", "fold_convolutionwithbias_mul", "fold_subdivmul_batch_norms", "mkl_fuse_pad_and_conv"),
    *("rerange_quantized_concat", "insert_logging", "freeze_max", "freeze_min", "fuse_quantized_conv_and_requantize"),
    *("fuse_quantized_matmul_and_requantize", "fuse_quantized_matmul_and_dequantize"),
}


def test_every_rewrite_of_2020_is_found_by_its_name() -> None:
    table = (REPO_ROOT / "docs" / "int8_graphs.md").read_text(encoding="utf-8").split("by their names\n")[1]
    rules = {rule.__name__ for rule in RULES}
    told: set[str] = set()
    for row in table.strip().splitlines()[2:]:
        names, here = (cell.strip() for cell in row.strip("|").split("|"))
        told.update(found := re.findall(r"`(\w+)`", names))
        files = [REPO_ROOT / path for path in re.findall(r"`(quantizer_core/[\w/.]+)`", here)]
        if set(found) <= rules:
            assert all((REPO_ROOT / "quantizer_core" / "rewrites" / f"{name}.py").is_file() for name in found)
            continue
        code = "".join(path.read_text(encoding="utf-8") for path in files or [REPO_ROOT / LOWERING])
        assert all(f"def {name}(" in code for name in re.findall(r"`(_?[a-z]\w+)`", here))
    assert told == NAMES


LOWERING = "quantizer_core/lowering/kernels.py"
