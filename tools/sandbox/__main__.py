"""``python -m forkgym.tools.sandbox``: a sandbox server on standard input and output.

Started with whatever environment, it starts itself again with a fixed one: no secret gets in, hashes are the same in
every run, and numpy's linear algebra has one thread.
"""

import os
import sys

from forkgym.tools.sandbox import server

ENVIRONMENT = {
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    # Python's objects in glibc's heap, in huge pages: a fork copies a page table of a few entries instead of thousands,
    # which halves the time of a fork and of its end. One heap for all threads: each other takes 64 MiB of addresses,
    # which count as memory.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "MALLOC_ARENA_MAX": "1",
    "PYTHONMALLOC": "malloc",
}

if __name__ == "__main__":
    if dict(os.environ) == ENVIRONMENT:
        server.main()
    else:
        # Neither the working folder nor the user's own packages are looked into (-P, -s), no byte code is written (-B).
        command = [sys.executable, "-s", "-P", "-B", "-m", "forkgym.tools.sandbox"]
        os.execve(sys.executable, command, ENVIRONMENT)
