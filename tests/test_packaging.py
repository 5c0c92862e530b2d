"""The wheel holds all that the four folders hold, and imports between them point one way."""

import ast
import json
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each may import itself and those before it.
FOLDERS = ("tools", "envs", "agents", "trainers")
IMPORTERS = (*FOLDERS, "scripts", "tests")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

# Where the packages of a clean environment come from, and what lies in the folder of the embedded policy.
PROBE = """
import importlib, importlib.resources, json
names = ["forkgym.tools", "forkgym.envs", "forkgym.agents", "forkgym.trainers"]
files = {name: importlib.import_module(name).__file__ for name in names}
embedded = importlib.resources.files("forkgym.agents") / "embedded"
data = sorted(entry.name for entry in embedded.iterdir()) if embedded.is_dir() else []
print(json.dumps({"files": files, "data": data}))
"""


def python_files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command to its end and return its output; its errors fail the test and are shown."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command} exited with {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel is built from: a build in place would pack what an earlier one left in ``build/``."""
    copied = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        copytree(ROOT / folder, copied / folder, ignore=ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            copy(path, copied)
    return copied


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", cwd=source)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent.relative_to(ROOT) for folder in FOLDERS for path in python_files(folder)}
    packages = {".".join(("forkgym", *folder.parts)) for folder in folders}
    assert packages == set(PROJECT["tool"]["setuptools"]["packages"])


def test_wheel_holds_what_the_folders_hold(source: Path, wheel: Path) -> None:
    paths = (path.relative_to(source) for folder in FOLDERS for path in (source / folder).rglob("*") if path.is_file())
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files == {f"forkgym/{path.as_posix()}" for path in paths}


def test_wheel_imports_from_a_clean_environment(source: Path, wheel: Path, tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of this environment. A path in a .pth file is not searched for further .pth files, so
    # the hook of the editable install, which is one, does not come along.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(paths)), encoding="utf-8")

    # Isolated: neither PYTHONPATH nor the user's own packages.
    found = json.loads(run(python, "-I", "-c", PROBE, cwd=tmp_path))

    assert found["files"] == {
        f"forkgym.{folder}": str(site_packages / "forkgym" / folder / "__init__.py") for folder in FOLDERS
    }
    assert found["data"] == sorted(path.name for path in (source / "agents" / "embedded").glob("*"))


def imported_names(source: str) -> Iterator[str]:
    """Yield the full name of everything that a module imports: ``a.b`` for ``import a.b`` and for ``from a import b``.

    A relative import begins with its dots.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = "." * node.level + (node.module or "")
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def import_faults(source: str, importer: str) -> list[str]:
    """List the imports that a module below the folder ``importer`` may not make."""
    allowed = FOLDERS if importer not in FOLDERS else FOLDERS[: FOLDERS.index(importer) + 1]
    faults: list[str] = []
    for name in imported_names(source):
        top, _, rest = name.partition(".")
        wrong_way = top == "forkgym" and rest.partition(".")[0] not in allowed
        # An empty `top` is a relative import.
        if wrong_way or top in ("", *FOLDERS):
            faults.append(name)
    return faults


@pytest.mark.parametrize("importer", IMPORTERS)
def test_imports_point_one_way(importer: str) -> None:
    faults = {
        str(path.relative_to(ROOT)): names
        for path in python_files(importer)
        if (names := import_faults(path.read_text(encoding="utf-8"), importer))
    }
    assert faults == {}


@pytest.mark.parametrize(
    ("source", "importer", "faults"),
    [
        ("import math\nfrom forkgym.tools.base import Tool\nimport forkgym.envs", "envs", []),
        ("from forkgym.trainers.types import Turn\nimport torch.nn", "scripts", []),
        ("from forkgym.envs.base import Task", "tools", ["forkgym.envs.base.Task"]),
        ("def late():\n    import forkgym.trainers.loss", "agents", ["forkgym.trainers.loss"]),
        ("from forkgym import trainers", "agents", ["forkgym.trainers"]),
        ("from envs.base import Task", "tests", ["envs.base.Task"]),
        ("import tools", "scripts", ["tools"]),
        ("from .base import Tool", "tools", [".base.Tool"]),
    ],
)
def test_wrong_imports_are_found(source: str, importer: str, faults: list[str]) -> None:
    assert import_faults(source, importer) == faults


def test_every_imported_library_is_declared() -> None:
    extras = {name: lines for name, lines in PROJECT["project"]["optional-dependencies"].items() if name != "dev"}
    requirements = [*PROJECT["project"]["dependencies"], *(line for lines in extras.values() for line in lines)]
    declared = {normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}
    distributions = packages_distributions()
    paths = [path for importer in (*FOLDERS, "scripts") for path in python_files(importer)]
    own = {"forkgym", *(path.stem for path in python_files("scripts"))}
    undeclared = {
        f"{path.relative_to(ROOT)}: {top}"
        for path in paths
        for top in {name.partition(".")[0] for name in imported_names(path.read_text(encoding="utf-8"))}
        if top not in own
        and top not in {*sys.stdlib_module_names, "_typeshed"}  # stubs, for type checkers alone
        # A library of an extra that is not installed here goes by its module's name.
        and declared.isdisjoint(map(normalised, distributions.get(top, [top])))
    }
    assert undeclared == set()


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
