"""Builds the package from settings.ini, the one source of name, version and requirements."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
extras = ("dev", "kaggle", "export", "search", "qdrant", "slurm", "postgres", "tensorboard", "docs", "gpu", "jax-gpu")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license="Apache-2.0",
    classifiers=["Programming Language :: Python :: 3", f"Intended Audience :: {cfg['audience']}"],
    python_requires=f">={cfg['min_python']}",
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={
        cfg["lib_path"]: ["catalogue/migrations/**/*", "demo/assets/*", "evaluation/assets/*", "server/web/*"],
    },
    install_requires=cfg["requirements"].split(),
    extras_require={extra: cfg[f"{extra}_requirements"].split() for extra in extras},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    long_description=(root / "README.md").read_text(encoding="utf-8") if (root / "README.md").exists() else "",
    long_description_content_type="text/markdown",
)
