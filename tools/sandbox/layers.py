"""The layers around a process that runs untrusted code, and `lock_down`, which puts them on."""

from __future__ import annotations

import os
import resource
import sys
import sysconfig
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path

from forkgym.tools.sandbox import landlock, linux, seccomp
from forkgym.tools.sandbox.limits import SandboxLimits

NOBODY = 65534
DEVICES = ("/dev/null", "/dev/zero")
PRIVATE_FOLDERS = ("/tmp", "/var/tmp", "/run")  # which of them: see `private_folder`
PRIVATE_FOLDER_FILES = 1_000
SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")


class Layer(StrEnum):
    """A mechanism that holds untrusted code; each stops something that the others let through."""

    ORDINARY_USER = "ordinary user"
    NAMESPACES = "user and network namespaces"
    PROCESS_NAMESPACE = "process-id namespace"
    OWN_ROOT = "own root folder"
    PRIVATE_FOLDER = "private folder"
    LIMITS = "resource limits"
    NO_NEW_PRIVILEGES = "no new privileges"
    LANDLOCK = "Landlock"
    SECCOMP = "seccomp"


# What became of the layers: why one does not hold, an empty text where it holds.
LayerReport = dict[Layer, str]


def lock_down(
    limits: SandboxLimits,
    readable: Sequence[str],
    *,
    proc: int | None = None,
    own_folder: bool = False,
    own_network: bool = True,
) -> LayerReport:
    """Put every layer that this machine offers around the calling process, for good.

    Call it once, after the imports and before any untrusted byte is read, in a process with a single thread. Open
    descriptors stay usable, so the caller closes those that the code must not have. In this order: new session,
    ordinary user, namespaces, private folder, resource limits, no new privileges, Landlock, no capabilities, seccomp.
    ``PROCESS_NAMESPACE`` and ``OWN_ROOT`` are not a process's own to take: whoever starts it adds them.

    Args:
        limits: The kernel keeps ``cpu_s``, ``memory_bytes`` (on top of what the process has mapped now),
            ``file_bytes``, ``open_files`` and ``threads``; the other two are for whoever reads the output.
        readable: Files and folders that may be read, such as `interpreter_trees`.
        proc: An open descriptor of the folder ``/proc`` where that is out of sight.
        own_folder: Mount a `private_folder` of ``limits.file_bytes`` in memory, the only one that may be written,
            and gone with the process. Without it nothing may be written anywhere.
        own_network: Enter a network namespace, which costs a millisecond. A process that was started in one that holds
            nothing but other sandboxes can do without.

    Returns:
        What became of each layer. The caller decides whether it is enough.
    """
    report: LayerReport = {}
    if os.getsid(0) != os.getpid():
        os.setsid()
    memory_bytes = mapped_bytes(proc) + limits.memory_bytes  # before the rest: /proc may be closed to it later
    attempt(report, Layer.ORDINARY_USER, become_ordinary)
    more = linux.CLONE_NEWNET | linux.CLONE_NEWIPC if own_network else 0
    attempt(report, Layer.NAMESPACES, enter_namespaces, more, proc)
    namespaces = not report[Layer.NAMESPACES]
    if own_folder:
        attempt(report, Layer.PRIVATE_FOLDER, mount_private_folder, private_folder(readable), limits.file_bytes)
    attempt(report, Layer.LIMITS, set_limits, limits, memory_bytes, namespaces)
    attempt(report, Layer.NO_NEW_PRIVILEGES, linux.prctl, linux.PR_SET_NO_NEW_PRIVS, 1)
    writable = [private_folder(readable)] if report.get(Layer.PRIVATE_FOLDER) == "" else []
    attempt(report, Layer.LANDLOCK, landlock.restrict, readable, writable, DEVICES)
    linux.drop_capabilities()
    attempt(report, Layer.SECCOMP, seccomp.install)
    return report


def attempt(report: LayerReport, layer: Layer, put_on: Callable[..., object], *arguments: object) -> None:
    """Put one layer on, and write down what became of it."""
    try:
        put_on(*arguments)
    except OSError as error:
        report[layer] = str(error)
    else:
        report[layer] = ""


def interpreter_trees() -> list[str]:
    """Files and folders that hold the standard library, system libraries, and the third-party packages imported so far.

    Nothing else that is installed is in the list: what is imported before `lock_down` is what there is.
    """
    paths = sysconfig.get_paths()
    base = {"platbase": sys.base_exec_prefix}  # a virtual environment's own holds every package that is installed
    trees = {paths["stdlib"], sysconfig.get_path("platstdlib", vars=base), *SYSTEM_LIBRARIES}
    trees |= {str(library) for library in Path(sys.base_prefix, "lib").glob("libpython*")}
    packages = {Path(paths["purelib"]), Path(paths["platlib"])}
    for module in list(sys.modules.values()):
        file = getattr(module, "__file__", None)
        for folder in packages:
            if file is not None and Path(file).is_relative_to(folder):
                top = folder / Path(file).relative_to(folder).parts[0]
                trees |= {str(top), f"{top}.libs"}  # wheels keep shared libraries beside the package
    return sorted(tree for tree in trees if os.path.exists(tree))


def mapped_bytes(proc: int | None) -> int:
    """Address space of this process."""
    descriptor = os.open("/proc/self/statm" if proc is None else "self/statm", os.O_RDONLY, dir_fd=proc)
    try:
        return int(os.read(descriptor, 100).split()[0]) * resource.getpagesize()
    finally:
        os.close(descriptor)


def become_ordinary() -> None:
    """Give up root's identity, where the process has it."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        # Changing it hides the process's own files in /proc from itself, the maps of `enter_namespaces` among them.
        linux.prctl(linux.PR_SET_DUMPABLE, 1)


def enter_namespaces(more: int, proc: int | None) -> None:
    """Enter new user and mount namespaces and ``more``, in which this user has the same number as outside."""
    user, group = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS | more)
    prefix = "/proc/self" if proc is None else "self"
    for name, text in (("uid_map", f"{user} {user} 1"), ("setgroups", "deny"), ("gid_map", f"{group} {group} 1")):
        descriptor = os.open(f"{prefix}/{name}", os.O_WRONLY, dir_fd=proc)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)


def private_folder(readable: Sequence[str]) -> str:
    """Where the private folder is: at ``/tmp``, unless libraries are installed below it, which it would hide."""
    return next(folder for folder in PRIVATE_FOLDERS if not any(Path(path).is_relative_to(folder) for path in readable))


def mount_private_folder(folder: str, size_bytes: int) -> None:
    """Mount an empty folder in memory; it disappears with the last process that sees it."""
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("tmpfs", folder, "tmpfs", flags, f"size={size_bytes},nr_inodes={PRIVATE_FOLDER_FILES},mode=700")
    os.chdir(folder)


def set_limits(limits: SandboxLimits, memory_bytes: int, own_count: bool) -> None:
    """Set resource limits that cannot be raised again.

    Args:
        limits: The session's limits.
        memory_bytes: Address space.
        own_count: The user's processes are counted in a namespace of this process's own. Elsewhere the number of
            threads is limited by memory only: the user's other processes would count.
    """
    values = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NOFILE: limits.open_files,
    }
    if own_count:
        values[resource.RLIMIT_NPROC] = limits.threads
    for which, value in values.items():
        _, highest = resource.getrlimit(which)
        if highest != resource.RLIM_INFINITY:
            value = min(value, highest)
        resource.setrlimit(which, (value, value))
