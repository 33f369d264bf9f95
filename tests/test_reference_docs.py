"""docs/reference.md is what the code says of itself now, and leaves nothing unsaid."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.conftest import REPO_ROOT


def test_the_reference_is_up_to_date_and_whole() -> None:
    done = subprocess.run(
        [sys.executable, "docs/reference.py"], cwd=REPO_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == (REPO_ROOT / "docs" / "reference.md").read_text(encoding="utf-8"), (
        "run: python docs/reference.py > docs/reference.md"
    )
    assert not re.findall(r"^\|.*\| *\|$", done.stdout, re.MULTILINE)  # an option or field of which nothing is said
    assert "``" not in done.stdout
