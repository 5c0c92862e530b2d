"""The examples in docstrings, run under the modules' installed names.

pytest's own ``--doctest-modules`` imports ``envs/base.py`` as ``envs.base``, also with ``--pyargs forkgym.envs``: other
class objects than those of ``forkgym.envs.base``, and every environment registered twice.
"""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("tools", "envs", "agents", "trainers")
# Top-level modules that only an extra installs.
OPTIONAL = ("mcp", "trackio", "vllm")


def module_name(path: Path) -> str:
    parts = ("forkgym", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(module_name(path) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_and_its_examples_hold(name: str) -> None:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}, which an extra installs")
    assert doctest.testmod(module).failed == 0
