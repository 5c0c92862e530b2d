"""Agents: engines that turn token contexts into completions, one turn at a time.

Read `base` (the contract) and `codec` (texts and tokens). `transformers_agent` samples from a model in this process on
the kept cache of `cache`, `slots` and `slot_model`; `scripted` replies without a model. `building` makes one from its
settings in `config`.
"""
