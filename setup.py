"""What the project is made of and the ranges it accepts; requirements.lock holds the one tested set."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def _version() -> str:
    """Reads VERSION as text: importing the package at build time would ask for its requirements."""
    text = (ROOT / "quantizer_core" / "version.py").read_text(encoding="utf-8")
    match = re.search(r'^VERSION = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise SystemExit('quantizer_core/version.py holds no line VERSION = "…"')
    return match.group(1)


EXTRAS = {
    "tfx": [
        "tfx==1.16.*",
        "apache-beam==2.61.*",
        "ml-metadata>=1.16,<1.17",
        "tfx-bsl>=1.16,<1.17",
        "tensorflow-model-analysis>=0.47,<0.48",
    ],
    "lineage": ["ml-metadata>=1.16,<1.17"],
    "kubeflow": ["kfp==2.5.*"],
    "demo": ["scikit-learn>=1.3,<2"],
    "detection": ["pycocotools>=2.0.7,<3"],
    "benchmarks": ["matplotlib>=3.8,<4"],
    "dev": [
        "build>=1",
        "hypothesis>=6.100",
        "mypy>=1.10",
        "pytest>=8,<10",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.6,<4",
        "ruff>=0.6",
        "setuptools>=70.1",
        "wheel>=0.43",
    ],
}

setup(
    name="tfx-quantizer",
    version=_version(),
    description="Turns trained FP32 TensorFlow graphs into INT8 ones for Intel-style CPUs, alone or as a TFX component",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(
        include=["quantizer_core", "quantizer_core.*", "components", "components.*", "pipelines", "pipelines.*"]
    ),
    package_data={"quantizer_core.zoo": ["*.json"]},
    python_requires=">=3.10,<3.11",
    install_requires=["click>=8.1,<9", "jsonschema>=4.18,<5", "numpy>=1.26,<2", "rich>=13", "tensorflow>=2.16,<2.17"],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["quantizer = quantizer_core.cli.main:main"]},
    zip_safe=False,
)
