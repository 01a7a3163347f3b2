"""Builds the package from settings.ini, the one source of name, version and requirements."""

import json
import re
import sys
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

if sys.version_info < (3, 11):  # noqa: UP036 - whoever runs this file with an old Python reads why
    sys.exit(f"happywhale_nb needs Python 3.11 or later; this is {sys.version.split()[0]}: install with another Python")
root = Path(__file__).parent
settings = ConfigParser(delimiters=["="])
settings.read(root / "settings.ini", encoding="utf-8")
cfg = settings["DEFAULT"]
extras = {
    key.removesuffix("_requirements"): value.split() for key, value in cfg.items() if key.endswith("_requirements")
}
extras["all"] = [*(each for name in cfg["all_extras"].split() for each in extras[name]), *extras["all"]]


def without_outputs(text):
    """A notebook's text without outputs and counts."""
    notebook = json.loads(text)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(outputs=[], execution_count=None)
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def for_an_index(readme):
    """The README as a package index shows it: without pictures and links that lead into the checkout."""
    return re.sub(r"\[([^\]]+)\]\((?!https?://)[^)]+\)", r"\1", re.sub(r"<img [^>]*>\n*", "", readme))


class BuildWithCopies(build_py):
    """Copies the numbered notebooks and the study files into the package, where `workflow.assets` finds them."""

    def run(self):
        super().run()
        if self.editable_mode:  # a checkout uses the originals
            return
        copies = Path(self.build_lib, cfg["lib_path"], "workflow", "copies")
        for path in (*root.glob("nbs/[0-9][0-9]_*.ipynb"), *root.glob("studies/*.yaml")):
            text, target = path.read_text(encoding="utf-8"), copies / path.relative_to(root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(without_outputs(text) if path.suffix == ".ipynb" else text, encoding="utf-8")


setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        f"Intended Audience :: {cfg['audience']}",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: {version}" for version in ("3.11", "3.12", "3.13")),
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=f">={cfg['min_python']}",
    cmdclass={"build_py": BuildWithCopies},
    packages=find_packages(include=[cfg["lib_path"], cfg["lib_path"] + ".*"]),
    package_data={
        cfg["lib_path"]: [
            "py.typed",
            "catalogue/migrations/**/*",
            "demo/assets/*",
            "evaluation/assets/*",
            "networks/ready_cards.json",
            "server/web/*",
            "workflow/Snakefile",
            "workflow/profiles/**/*",
        ]
    },
    install_requires=cfg["requirements"].split(),
    extras_require=extras,
    entry_points={"console_scripts": cfg["console_scripts"].split()},
    long_description=for_an_index((root / "README.md").read_text(encoding="utf-8"))
    if (root / "README.md").exists()
    else "",
    long_description_content_type="text/markdown",
)
