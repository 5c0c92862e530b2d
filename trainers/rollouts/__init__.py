"""From tasks to trees: `collection` (a step's trees), `rollout` (all tasks at once), `tree` and `growth` (one of them).

`branching` says where a tree branches, `rollout_file` writes trees down and reads them.
"""
