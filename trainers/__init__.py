"""Rollouts that grow into trees, and learning from them.

Read `types` (the records), then a step in the order in which it happens: `loop` (`train_step`), `rollouts` (tasks to
trees), `packing` (trees to rows), `algorithms` (rewards to advantages, and the loss), `forward` (log-probs, each shared
token once), `update` (the optimizer's steps). `learner` is what a step changes; `runs` what a run leaves behind.
`sft` is the cold start, `commands` the command line of every script, `config` the settings.
"""
