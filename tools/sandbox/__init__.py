"""Processes in which untrusted code runs.

Three kinds of process stand behind the Python tool. The **server** (``server.py``) is started by exec with an empty
environment; it speaks frames over its standard input and output, so it may run on another machine or in a stronger
sandbox, and it keeps the deadlines and caps. The **forker** (``forker.py``) has numpy and sympy loaded, sees no code,
and forks. A **worker** (``worker.py``) locks itself in (``layers.py``: namespaces, ``jail.py``, ``landlock.py``,
``seccomp.py``, limits), then runs one session's calls. ``client.py`` is the side of the process that trains;
``selftest.py`` finds out at start what holds.
"""
