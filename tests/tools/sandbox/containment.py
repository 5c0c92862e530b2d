"""A containment around hostile programs: namespaces of an ordinary user, with limits on memory and processes."""

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

NOBODY = "65534"
LIMITS = ["prlimit", "--nproc=400", "--as=8589934592", "--core=0", "--fsize=1073741824"]
NAMESPACES = (
    "unshare --user --map-current-user --keep-caps --mount --pid --fork --kill-child --mount-proc --net --ipc --uts"
).split()
PROBE = "import os; print(os.getpid(), os.getuid() != 0, sorted(int(n) for n in os.listdir('/proc') if n.isdigit()))"


def closed_folder(path: Path) -> Path | None:
    """The topmost folder above a path that an ordinary user cannot get through."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & stat.S_IXOTH:
            return folder
    return None


def containment() -> list[str]:
    """The command line in front of the runner's."""
    if os.geteuid() != 0:
        return [*LIMITS, *NAMESPACES]
    # Root's own interpreter may lie below a folder that only root gets through: within a mount namespace, that folder
    # is covered by an empty one with nothing in it but the interpreter.
    steps = ["set -e", "mount --make-rprivate /"]
    base = Path(sys.base_prefix)
    if (closed := closed_folder(base)) is not None:
        steps += [
            "held=$(mktemp -d)",
            f"mount --bind '{base}' $held",
            f"mount -t tmpfs -o mode=755 tmpfs '{closed}'",
            f"mkdir -p '{base}'",
            f"mount --move $held '{base}'",
            "rmdir $held",
        ]
    steps.append('exec "$@"')
    user = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups"]
    return ["unshare", "--mount", "sh", "-c", "; ".join(steps), "sh", *user, *LIMITS, *NAMESPACES]


def run_contained(*command: str, stdin: str = "", timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*containment(), *command],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"},
    )


def skip_without_containment() -> None:
    """Skip where no containment can be made, which a harmless program finds out first."""
    if missing := [name for name in ("unshare", "setpriv", "prlimit", "mount") if shutil.which(name) is None]:
        pytest.skip(f"no containment: {', '.join(missing)} of util-linux is not installed")
    probe = run_contained(sys.executable, "-I", "-c", PROBE)
    if probe.stdout.strip() != "1 True [1]":
        pytest.skip(f"no containment on this machine: {probe.stdout or probe.stderr}")
