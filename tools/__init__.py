"""Tools that a policy calls: what a tool is (`base`), how one is found by name (`registry`), and the built-in ones.

Read `base` first; a tool of your own is a typed function with a docstring, and `checking` holds it against the
contract. `calculator` and `search` are the two that the shipped environments use; `python`, `visit` and `mcp` are what
an untrusted policy may do with the world. What stands behind them has a folder each: `sandbox` runs code, `web` speaks
HTTP, `mcp_client` speaks to tool servers, `corpora` keeps passages and indexes on disk.
"""
