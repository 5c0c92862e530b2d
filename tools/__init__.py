"""Tools that a policy calls: what a tool is (`base`), how one is found by name (`registry`), and the built-in ones.

Read `base` first. `calculator` and `search` are the two that the shipped environments use; a tool of your own is a
typed function with a docstring.
"""
