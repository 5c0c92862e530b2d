"""Rollouts that grow into trees, and learning from them.

Read `types` (the records), then a step in the order in which it happens: `loop` (`train_step`), `rollout` and `tree`
(tasks to trees, with `branching`), `advantages` (leaves to turns), `packing` (trees to tensors), `losses`, `update`
(one optimizer step). `algorithms` is the table of names. Around them: `evaluation`, `metrics`, `checkpoint`,
`run_folder`, `reporting`, and `config` with `command_line`.
"""
