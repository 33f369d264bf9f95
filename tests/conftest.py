"""What every test shares: a quiet TensorFlow on the CPU, a repeatable Hypothesis, and the way to the shared data."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from quantizer_core.onednn import use_onednn

# Before anything imports TensorFlow, which reads these once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
use_onednn()

REPO_ROOT = Path(__file__).resolve().parent.parent
IN_CI = os.environ.get("CI", "").lower() == "true"

# The first example of a test pays for TensorFlow's start: a deadline on examples would measure the machine.
settings.register_profile(
    "default", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if IN_CI else "default")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Returns the folder with real graphs, images and sounds; tests that ask for it are skipped where it is missing.

    The folder is named by ``QUANTIZER_SHARED_DATA``, else ``../shared/data`` beside the checkout. Where the data must
    be at hand (``CI=true`` or ``QUANTIZER_REQUIRE_DATA=1``), a missing folder fails the test instead.
    """
    folder = Path(os.environ.get("QUANTIZER_SHARED_DATA") or REPO_ROOT.parent / "shared" / "data")
    if (folder / "graphs").is_dir():
        return folder
    reason = f"no shared data in {folder}; name its folder in QUANTIZER_SHARED_DATA"
    if IN_CI or os.environ.get("QUANTIZER_REQUIRE_DATA") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def prism_endpoint() -> Iterator[str]:
    """Runs Prism, Beam's portable runner; gives the endpoint of its job service.

    Tests that ask for it are skipped where Go is missing; where it is there, Prism has to be built in CI.
    """
    from tests.helpers.prism import prism, why_no_prism

    reason = why_no_prism()
    if reason and IN_CI and "make prism" in reason:
        pytest.fail(reason)
    if reason:
        pytest.skip(reason)
    with prism() as endpoint:
        yield endpoint
