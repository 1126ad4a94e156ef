"""What this environment has of the project, and of the packages that its extras bring.

Task: {modules: [...]}. Answer: {version, homes: {package: folder}, files: [...], present: [modules that are here],
names: {package: public names that loaded}, hints: {package: error of the first name that did not load}}.
"""

import importlib
import json
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

PACKAGES = (
    "opengradient_x402",
    "opengradient_devnet",
    "langchain_opengradient",
    "llama_index_opengradient",
    "llama_index.llms.opengradient",
)


def is_here(module):
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def main(task):
    distribution = metadata.distribution("opengradient-integrations")
    homes, names, hints = {}, {}, {}
    for package in PACKAGES:
        homes[package] = str(Path(find_spec(package).origin).parent)
        try:
            module = importlib.import_module(package)
            names[package] = [name for name in module.__all__ if getattr(module, name) is not None]
        except ModuleNotFoundError as exc:
            hints[package] = str(exc)
    return {
        "version": distribution.version,
        "homes": homes,
        "files": [str(path) for path in distribution.files],
        "present": [module for module in task["modules"] if is_here(module)],
        "names": names,
        "hints": hints,
    }


print(json.dumps(main(json.loads(sys.stdin.readline()))))
