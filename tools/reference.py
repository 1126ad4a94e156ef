"""Writes docs/reference.md from the docstrings of the public names: `python tools/reference.py [--check]`.

Public is what a package lists in `__all__`. Signatures and texts are read from the source, not from live objects, so
that nothing inherited from a framework is listed. `--check` changes nothing and ends with 1 when the file is out of
date. It does not know what the names are for.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

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
    """The whole page."""
    parts = [HEAD]
    for package, title in PACKAGES.items():
        parts.append(f"## `{package}`\n\n{title}.\n\n")
        names = importlib.import_module(package).__all__
        parts += [entry(package, name) for name in sorted(names, key=str.lower)]
    return "".join(parts).rstrip() + "\n"


def entry(package: str, name: str) -> str:
    """One public name: a class with its members, a function, or an alias."""
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
    """The class with what it has from bases of its package that are not listed themselves."""
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
    """A class: its text, its fields, its public methods and properties."""
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
    """Table rows for annotated fields and enum members, with the text below each or in `Field(description=)`."""
    for member, after in zip(definition.body, [*definition.body[1:], None], strict=True):
        name, default, annotation = field_parts(member)
        if name is None or name.startswith("_") or name == "model_config":
            continue
        said = description_in(member) or docstring_after(after)
        shown = " ".join(filter(None, [f"`{name}`", f"`{annotation}`" if annotation else ""]))
        yield f"| {cell(shown)} | {cell(f'`{default}`' if default else '')} | {cell(said)} |\n"


def field_parts(member: ast.stmt) -> tuple[str | None, str, str]:
    """(name, default, annotation) of a field; the name is None when the statement is none."""
    if isinstance(member, ast.AnnAssign) and isinstance(member.target, ast.Name):
        return member.target.id, default_of(member.value), ast.unparse(member.annotation)
    if isinstance(member, ast.Assign) and isinstance(member.targets[0], ast.Name):
        return member.targets[0].id, ast.unparse(member.value), ""
    return None, "", ""


def default_of(value: ast.expr | None) -> str:
    """A default as written, or as a `Field(...)` names it."""
    if isinstance(value, ast.Call) and ast.unparse(value.func) == "Field":
        named = {keyword.arg: ast.unparse(keyword.value) for keyword in value.keywords}
        return named.get("default") or (f"{named['default_factory']}()" if "default_factory" in named else "")
    return "" if value is None else ast.unparse(value)


def description_in(member: ast.stmt) -> str:
    """The `description` of a pydantic field."""
    value = getattr(member, "value", None)
    if isinstance(value, ast.Call):
        for keyword in value.keywords:
            if keyword.arg == "description" and isinstance(keyword.value, ast.Constant):
                return str(keyword.value.value)
    return ""


def docstring_after(statement: ast.stmt | None) -> str:
    """The string that stands below a field and describes it."""
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return inspect.cleandoc(str(statement.value.value))
    return ""


def find_definition(module: str, name: str) -> Definition | None:
    """The class or function in the module's source."""
    file = inspect.getsourcefile(importlib.import_module(module))
    tree = ast.parse(Path(file or "").read_text())
    found = (node for node in tree.body if isinstance(node, Definition) and node.name == name)
    return next(found, None)


def method_of(definition: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    """A method by name."""
    return next((node for node in definition.body if isinstance(node, ast.FunctionDef) and node.name == name), None)


def is_worth_showing(init: ast.FunctionDef) -> bool:
    """Whether a constructor says more than `**fields`."""
    return bool(init.args.args[1:] or init.args.kwonlyargs)


def is_hidden(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a method is the framework's business: validators, and callbacks that the framework calls."""
    marks = {ast.unparse(mark).partition("(")[0] for mark in method.decorator_list}
    return bool(marks & {"field_validator", "model_validator", "field_serializer"}) or method.name.startswith("on_")


def called(method: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """How a member is used: `await name(…)`, `name(…)`, or `name` for a property."""
    if any(ast.unparse(mark) in ("property", "cached_property") for mark in method.decorator_list):
        return method.name
    awaited = "await " if isinstance(method, ast.AsyncFunctionDef) else ""
    return f"{awaited}{method.name}{signature(method, is_method=True)}"


def signature(function: ast.FunctionDef | ast.AsyncFunctionDef, *, is_method: bool = False) -> str:
    """Names and defaults; types are in the source and in the editor."""
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
    """The docstring, as Markdown."""
    return inspect.cleandoc(ast.get_docstring(definition) or "")


def one_line(text: str | None) -> str:
    """The first paragraph, on one line."""
    return " ".join((text or "").partition("\n\n")[0].split())


def cell(text: str) -> str:
    """Text that fits into a table."""
    return one_line(text).replace("|", "\\|")


def main(arguments: list[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    written = page()
    if parser.parse_args(arguments).check:
        return int(PAGE.read_text() != written)
    PAGE.write_text(written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
