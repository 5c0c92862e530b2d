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

EXAMPLE = ROOT / "tests" / "examples"
# On the command line, by path and by name.
EXAMPLE_TOOLS = ("units.py:convert", "convert")
EXAMPLE_ENVS = ("letters.py:LettersEnv", "forkgym_example/Letters-v0")
CHECK_EXAMPLE = """
import sys
from forkgym.envs.checking import check_tool_env
from forkgym.envs.registry import make_env
from forkgym.tools.checking import check_tool
from forkgym.tools.registry import resolve_tool
for tool, env in zip(map(resolve_tool, sys.argv[1:3]), map(make_env, sys.argv[3:])):
    check_tool(tool, calls=["3 mi km", "1 km ly"])
    check_tool_env(env)
    print(tool.name, type(env.unwrapped).__name__)
"""
TWO_STEPS = (
    "--trainer.num_steps 2 --rollout.num_generations 2 --rollout.initial_generations 2 --rollout.tasks_per_step 2 "
    "--rollout.max_turn_tokens 8 --evaluation.num_tasks 1"
).split()


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


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a clean environment in which the wheel is installed."""
    environment = tmp_path_factory.mktemp("clean") / "environment"
    python = environment / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", environment, cwd=environment.parent)
    install(wheel, python)
    # The dependencies are those of this environment. A path in a .pth file is not searched for further .pth files, so
    # the hook of the editable install, which is one, does not come along.
    (site_packages,) = environment.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "dependencies.pth").write_text("\n".join(sorted(paths)), encoding="utf-8")
    return python


def install(wheel: Path, python: Path) -> None:
    pip = (sys.executable, "-m", "pip", "--python", python)
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=wheel.parent)


def test_wheel_imports_from_a_clean_environment(source: Path, python: Path, tmp_path: Path) -> None:
    # Isolated: neither PYTHONPATH nor the user's own packages.
    found = json.loads(run(python, "-I", "-c", PROBE, cwd=tmp_path))

    (site_packages,) = python.parents[1].glob("lib/python*/site-packages")
    assert found["files"] == {
        f"forkgym.{folder}": str(site_packages / "forkgym" / folder / "__init__.py") for folder in FOLDERS
    }
    assert found["data"] == sorted(path.name for path in (source / "agents" / "embedded").glob("*"))


# A package of a user's own, beside the wheel: its tool and environment are found by name, and by path without it.


@pytest.fixture
def example_files(tmp_path: Path) -> Path:
    """A folder with the files of the example alone, which is where the commands below run."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for name in ("units.py", "letters.py"):
        copy(EXAMPLE / "forkgym_example" / name, folder)
    return folder


@pytest.fixture(scope="module")
def python_with_example(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same interpreter, with the example installed as well."""
    copied = tmp_path_factory.mktemp("example") / "source"
    copytree(EXAMPLE, copied, ignore=ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", copied / "dist", cwd=copied)
    (built,) = (copied / "dist").glob("*.whl")
    install(built, python)
    return python


def test_the_example_keeps_the_contracts(python_with_example: Path, example_files: Path) -> None:
    command = (python_with_example, "-I", "-c", CHECK_EXAMPLE, *EXAMPLE_TOOLS, *EXAMPLE_ENVS)
    assert run(*command, cwd=example_files) == "convert LettersEnv\n" * 2


def test_evaluation_takes_the_example(python_with_example: Path, example_files: Path) -> None:
    options = ("--env.id", *EXAMPLE_ENVS, "--agent.kind", "oracle", "--num_tasks", "5", "--output", "results.json")
    run(python_with_example, "-I", ROOT / "scripts" / "evaluate.py", *options, cwd=example_files)
    results = json.loads((example_files / "results.json").read_text(encoding="utf-8"))
    assert {name: result["accuracy"] for name, result in results.items()} == dict.fromkeys(EXAMPLE_ENVS, 1.0)


@pytest.mark.slow
def test_training_takes_the_example(python_with_example: Path, example_files: Path) -> None:
    options = ("--env.id", *EXAMPLE_ENVS, "--env.tools", *EXAMPLE_TOOLS[:1], "--run_dir", "run", *TWO_STEPS)
    run(python_with_example, "-I", ROOT / "scripts" / "train_arpo.py", *options, cwd=example_files)
    rows = [json.loads(line) for line in (example_files / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert all(f"accuracy/{name}" in row for row in rows for name in EXAMPLE_ENVS)


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


def names_of(requirements: list[str]) -> set[str]:
    """The names in requirements such as ``torch>=2.8``."""
    return {normalised(re.split(r"[\[<>=!~; ]", requirement)[0]) for requirement in requirements}


def test_every_imported_library_is_declared() -> None:
    extras: dict[str, list[str]] = dict(PROJECT["project"]["optional-dependencies"])
    only_developers = names_of(extras.pop("dev"))  # who run the benchmarks, too
    declared = names_of(PROJECT["project"]["dependencies"]).union(*map(names_of, extras.values()))
    distributions = packages_distributions()
    paths = [path for importer in (*FOLDERS, "scripts") for path in python_files(importer)]
    own = {"forkgym", "scripts", *(path.stem for path in python_files("scripts"))}
    undeclared = {
        f"{path.relative_to(ROOT)}: {top}"
        for path in paths
        for top in {name.partition(".")[0] for name in imported_names(path.read_text(encoding="utf-8"))}
        if top not in own
        and top not in {*sys.stdlib_module_names, "_typeshed"}  # stubs, for type checkers alone
        # A library of an extra that is not installed here, or comes in another build, goes by its module's name.
        and (declared | only_developers if path.parent.name == "benchmarks" else declared).isdisjoint(
            map(normalised, [top, *distributions.get(top, [])])
        )
    }
    assert undeclared == set()


def normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()
