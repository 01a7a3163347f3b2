"""Lays out the source of the site: README, notebooks and the pages of `docs`, each in its place in the checkout.

`python docs/stage.py FOLDER` writes it to `FOLDER/source`. Since everything keeps its place, links are written once
and work in the checkout, in Jupyter, and on the site. What only machines read is left out of the notebooks.
"""

import ast
import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def read(path):
    return path.read_text(encoding="utf-8")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def source(cell):
    """A cell's text without nbdev's directives and papermill's."""
    lines = "".join(cell["source"]).splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("#| ", "# papermill_"))).strip("\n")


def module(notebook):
    """The module a notebook (a dict) exports to; "" if it exports none."""
    found = re.search(r"^#\| default_exp ([\w.]+)", "\n".join("".join(c["source"]) for c in notebook["cells"]), re.M)
    return found[1] if found else ""


def page(notebook):
    """The notebook as it is shown: no directives, no tags, no cells left empty; the module's name under the summary."""
    name = module(notebook)
    cells = [{**cell, "source": source(cell), "metadata": {}} for cell in notebook["cells"]]
    if name:
        cells[0]["source"] += f"\n\n*Exported as the module `happywhale_nb.{name}`.*"
    return {**notebook, "cells": [cell for cell in cells if cell["source"]]}


def summary(path):
    """The line that follows `>` at the head of a notebook."""
    return re.search(r"^> (.+)", source(json.loads(read(path))["cells"][0]), re.M)[1]


WING = re.compile(r"^## (\w+)\n\n(.+?)\n\n((?:- \[\w+\]\(\.\./nbs/lib/\S+\.ipynb\)\n)+)", re.M | re.S)


def hidden_toctree(entries):
    """A table of contents for the side bar alone."""
    return "\n".join(["```{toctree}", ":hidden:", "", *entries, "```", ""])


def library(root):
    """The page on the library with the notebooks' summaries, and a page for each wing, `{path: text}`.

    The side bar shows the wings, and the notebooks of the one that is open."""
    text, pages = read(root / "docs" / "library.md"), {}

    def described(found):
        wing, intro, links = found.groups()
        names = re.findall(r"\((\S+)\.ipynb\)$", links, re.M)
        lines = [f"- [{Path(name).name}]({name}.ipynb): {summary(root / 'docs' / f'{name}.ipynb')}" for name in names]
        below = "\n".join(lines).replace("](../", "](../../")
        toctree = hidden_toctree(name.replace("../", "/", 1) for name in names)
        above = intro.replace("](../", "](../../")
        pages[f"library/{wing}"] = f"# {wing}\n\n> {above}\n\n{toctree}\n{below}\n"
        return "\n".join([f"## {wing}", "", intro, "", *lines, ""])

    text = WING.sub(described, text)
    return {"library": f"{text}\n{hidden_toctree(f'/docs/{page}' for page in pages)}"} | pages


def signature(node):
    """A function's or class's name with its parameters, as Python writes it, a parameter a line if it is long."""
    start, mark = node, "def "
    if isinstance(node, ast.ClassDef):
        mark = "class "
        start = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        if not start and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
            return f"class {node.name}:\n    " + "\n    ".join(fields(node))
    if "property" in map(ast.unparse, node.decorator_list):
        return f"{node.name}: {ast.unparse(node.returns)}" if node.returns else node.name
    words = re.sub(r"^(self|cls)\b(, )?", "", ast.unparse(start.args)) if start else ""
    if len(words) > 90:
        words = "\n    " + ",\n    ".join(parameters(start.args)) + ",\n"
    returns = f" -> {ast.unparse(node.returns)}" if getattr(node, "returns", None) else ""
    return f"{mark}{node.name}({words}){returns}"


def fields(node):
    """The fields of a dataclass, as its code writes them."""
    return [ast.unparse(n) for n in node.body if isinstance(n, ast.AnnAssign) and not n.target.id.startswith("_")]


def parameters(arguments):
    """The parameters of a signature, one by one."""
    whole = ast.parse(f"def f({ast.unparse(arguments)}): ...").body[0].args
    plain = [*whole.posonlyargs, *whole.args]
    missing = [None] * (len(plain) - len(whole.defaults))
    pairs = list(zip(plain, [*missing, *whole.defaults], strict=True))
    found = [ast.unparse(a) + (f" = {ast.unparse(d)}" if d else "") for a, d in pairs if a.arg not in ("self", "cls")]
    if whole.vararg or whole.kwonlyargs:
        found.append(f"*{ast.unparse(whole.vararg)}" if whole.vararg else "*")
    named = zip(whole.kwonlyargs, whole.kw_defaults, strict=True)
    found += [ast.unparse(a) + (f" = {ast.unparse(d)}" if d else "") for a, d in named]
    return found + ([f"**{ast.unparse(whole.kwarg)}"] if whole.kwarg else [])


@cache
def classes(path):
    """The classes that a module defines or imports from the package: `{name: (path of its module, node)}`."""
    tree, found = ast.parse(read(path)), {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):  # nbdev writes some as `from .knn`, others as `from happywhale_nb.…`
            start = path.parents[node.level - 1] if node.level else ROOT
            source = start.joinpath(*(node.module or "").split(".")).with_suffix(".py")
            known = classes(source) if source.is_file() else {}
            found |= {a.asname or a.name: known[a.name] for a in node.names if a.name in known}
        elif isinstance(node, ast.ClassDef):
            found[node.name] = (path, node)
    return found


def methods(path, node):
    """Public methods and properties of a class, then those it inherits in the package: `{name: (function, class)}`."""
    functions = [n for n in node.body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")]
    found = {f.name: (f, node) for f in functions}
    for base in map(ast.unparse, node.bases):
        inherited = methods(*classes(path)[base]) if base in classes(path) else {}
        found = {**found, **{name: item for name, item in inherited.items() if name not in found}}
    return found


def described(node, name, level, origin=""):
    """Heading, signature and documentation of a function or class; only the summary if `origin`, a class, has all."""
    first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
    text = [f"{'#' * level} {name}", "", "```python", signature(node), "```", "", first.replace("\n", " "), ""]
    if origin:
        return [*text, f"Inherited from `{origin}`.", ""]
    return text + (["```text", rest, "```", ""] if rest else [])


def described_class(path, node, level):
    """The same of a class and of its public methods; a public base documents its own."""
    text = described(node, node.name, level)
    for name, (method, owner) in methods(path, node).items():
        origin = "" if owner is node or owner.name.startswith("_") else owner.name
        text += described(method, f"{node.name}.{name}", level + 1, origin)
    return text


def functions(root):
    """Pages that list what each module offers, `{path: text}`: one for each wing, and one that leads to them.

    sphinx-autoapi took 63 s of CPU for them, beside 15 s, and stumbled over annotated FastAPI parameters."""
    wings = {}
    for path in sorted(root.glob("nbs/**/*.ipynb")):
        if not (name := module(json.loads(read(path)))):
            continue
        module_path = root / "happywhale_nb" / f"{name.replace('.', '/')}.py"
        page = wings.setdefault(name.partition(".")[0], [])
        page += [f"## {name}", "", f"Notebook: [{path.stem}](../../{path.relative_to(root).as_posix()})", ""]
        for node in ast.parse(read(module_path)).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                page += described(node, node.name, 3)
            elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                page += described_class(module_path, node, 3)
    listed = "\n".join(f"/docs/functions/{wing}" for wing in sorted(wings))
    intro = "> What each module of `happywhale_nb` offers: signatures and documentation; its notebook shows more."
    pages = {"functions": f"# Functions\n\n{intro}\n\n```{{toctree}}\n{listed}\n```\n"}
    return pages | {f"functions/{wing}": "\n".join([f"# {wing}", "", *page]) for wing, page in wings.items()}


def stage(root, folder):
    """Write the source of the site into `folder/source`; an earlier one, and its `folder/html`, are removed."""
    for old in ("source", "html"):
        shutil.rmtree(folder / old, ignore_errors=True)
    target = folder / "source"
    readme = re.sub(r"\]\(nbs/lib/(\w+)/\)", r"](docs/library.md#\1)", read(root / "README.md"))  # a folder is no page
    write(target / "index.md", readme + "\n" + read(root / "docs" / "index.md"))
    for name in ("LICENSE", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md"):
        shutil.copy(root / name, target)
    shutil.copytree(root / "nbs" / "images", target / "nbs" / "images")
    for path in root.glob("nbs/**/*.ipynb"):
        place = path.relative_to(root)
        if ".ipynb_checkpoints" not in place.parts and place.name != "index.ipynb":  # the README is made from it
            write(target / place, json.dumps(page(json.loads(read(path)))))
    for path in root.glob("docs/**/*.md"):
        if path.name != "index.md":
            write(target / path.relative_to(root), read(path))
    for name, text in (library(root) | functions(root)).items():
        write(target / "docs" / f"{name}.md", text)


if __name__ == "__main__":
    stage(ROOT, Path(sys.argv[1]))
