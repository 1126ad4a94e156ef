"""Writes docs/reference.md from the docstrings of the public names: `python tools/reference.py [--check]`.

A name is public when its package lists it in `__all__`. Signatures and texts come from the source code, not from
imported objects, so that nothing inherited from a framework is listed. `--check` writes nothing; its exit code is 1
when the page is out of date.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

from opengradient_x402.process import Resident

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "reference.md"
PACKAGES = {
    "langchain_opengradient": "LangChain",
    "llama_index_opengradient": "LlamaIndex",
    "opengradient_x402": "What both share: paying, proving, receipts",
    "opengradient_devnet": "The embedded network, for tests",
}
HEAD = """# Reference

Written by `python tools/reference.py` from the docstrings. What is not listed here is internal and may change.

"""
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def page() -> str:
    """Return the whole page as Markdown."""
    parts = [HEAD]
    for package, title in PACKAGES.items():
        parts.append(f"## `{package}`\n\n{title}.\n\n")
        names = importlib.import_module(package).__all__
        parts += [entry(package, name) for name in sorted(names, key=str.lower)]
    return "".join(parts).rstrip() + "\n"


def entry(package: str, name: str) -> str:
    """Return the entry of one public name: a class with its members, a function, or an alias."""
    value = getattr(importlib.import_module(package), name)
    home = getattr(value, "__module__", "")
    if home.partition(".")[0] != package:
        return f"### `{package}.{name}`\n\nThe same as `{home}.{name}`.\n\n"
    definition = find_definition(home, name)
    if definition is None:
        return f"### `{package}.{name}`\n\n{one_line(inspect.getdoc(value))}\n\n"
    if isinstance(definition, ast.ClassDef):
        return "".join(class_entry(package, with_internal_bases(package, value, definition)))
    return f"### `{package}.{name}{signature(definition)}`\n\n{text_of(definition)}\n\n"


def with_internal_bases(package: str, value: type, definition: ast.ClassDef) -> ast.ClassDef:
    """Return the class, with the members of its bases that are in the same package and have no entry of their own."""
    public = importlib.import_module(package).__all__
    internal = (
        find_definition(base.__module__, base.__name__)
        for base in reversed(value.__mro__[1:])
        if base.__module__.partition(".")[0] == package and not base.__name__.startswith("_")
        if base.__name__ not in public
    )
    members = [m for base in internal if isinstance(base, ast.ClassDef) for m in base.body[1:]]  # not its docstring
    if members:
        definition.body = [definition.body[0], *members, *definition.body[1:]]
    return definition


def class_entry(package: str, definition: ast.ClassDef) -> Iterator[str]:
    """Yield the parts of a class entry: text, fields, public methods and properties."""
    yield f"### `{package}.{definition.name}`\n\n"
    if (init := method_of(definition, "__init__")) is not None and is_worth_showing(init):
        yield f"`{definition.name}{signature(init, is_method=True)}`\n\n"
    yield f"{text_of(definition)}\n\n"
    if rows := list(fields_of(definition)):
        yield "| field | default | |\n|---|---|---|\n" + "".join(rows) + "\n"
    methods = [member for member in definition.body if isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)]
    for method in methods:
        if not method.name.startswith("_") and ast.get_docstring(method) and not is_hidden(method):
            yield f"- **`{called(method)}`** {one_line(ast.get_docstring(method))}\n"
    yield "\n"


def fields_of(definition: ast.ClassDef) -> Iterator[str]:
    """Yield table rows for annotated fields and enum members, with the text below each or in `Field(description=)`."""
    for member, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        name, default, annotation = field_parts(member)
        if name is None or name.startswith("_") or name == "model_config":
            continue
        said = description_in(member) or docstring_after(after)
        shown = " ".join(filter(None, [f"`{name}`", f"`{annotation}`" if annotation else ""]))
        yield f"| {cell(shown)} | {cell(f'`{default}`' if default else '')} | {cell(said)} |\n"


def field_parts(member: ast.stmt) -> tuple[str | None, str, str]:
    """Return (name, default, annotation) of a field. The name is None when the statement is not a field."""
    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
        return member.target.id, default_of(member.value), ast.unparse(member.annotation)
    if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
        return member.targets[0].id, ast.unparse(member.value), ""
    return None, "", ""


def default_of(value: ast.expr | None) -> str:
    """Return a default as written in the source, also inside `Field(...)`; "" when there is none."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return named.get("default") or (f"{named['default_factory']}()" if "default_factory" in named else "")
    return "" if value is None else ast.unparse(value)


def description_in(member: ast.stmt) -> str:
    """Return the `description` of a pydantic field, or ""."""
    value = getattr(member, "value", None)
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def docstring_after(statement: ast.stmt | None) -> str:
    """Return the string below a field that describes it, or ""."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return inspect.cleandoc(str(statement.value.value))
    return ""


def find_definition(module: str, name: str) -> Definition | None:
    """Return the class or function as parsed from the module's source, or None."""
    file = inspect.getsourcefile(importlib.import_module(module))
    tree = ast.parse(Path(file or "").read_text())
    found = (node for node in tree.body if isinstance(node, Definition) and node.name == name)
    return next(found, None)


def method_of(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """Return the method of this name, or None."""
    return next((node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def is_worth_showing(init: ast.FunctionDef) -> bool:
    """Return whether a constructor has arguments to show besides the fields."""
    return bool(init.args.args[1:] or init.args.kwonlyargs)


def is_hidden(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Return whether no user calls a method: the framework calls its callbacks, and the process its residents."""
    marks = {ast.unparse(mark).partition("(")[0] for mark in method.decorator_list}
    if marks & {"field_validator", "model_validator", "field_serializer"}:
        return True
    return method.name.startswith("on_") or method.name in vars(Resident)


def called(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Return how a member is used: `await name(…)`, `name(…)`, or `name` for a property."""
    if any(ast.unparse(mark) in ("property", "cached_property") for mark in method.decorator_list):
        return method.name
    awaited = "await " if isinstance(method, ast.AsyncFunctionDef) else ""
    return f"{awaited}{method.name}{signature(method, is_method=True)}"


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool = False) -> str:
    """Return argument names and defaults. Types are left out: the source and the editor show them."""
    arguments = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(arguments, ast.FunctionDef | ast.AsyncFunctionDef)
    args = arguments.args
    for argument in [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]:
        if argument is not None:
            argument.annotation = None
    if is_method and args.args and args.args[0].arg in ("self", "cls"):
        args.args = args.args[1:]
    return f"({ast.unparse(args)})"


def text_of(definition: Definition) -> str:
    """Return the docstring as Markdown."""
    return inspect.cleandoc(ast.get_docstring(definition) or "")


def one_line(text: str | None) -> str:
    """Return the first paragraph on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())


def cell(text: str) -> str:
    """Return text that can stand in a table cell."""
    return one_line(text).replace("|", "\\|")


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    written = page()
    if parser.parse_args(arguments).check:
        return int(PAGE.read_text() != written)
    PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
