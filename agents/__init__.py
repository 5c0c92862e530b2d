"""Agents: engines that turn token contexts into completions, one turn at a time.

Read `base` (the contract) and `codec` (texts and tokens). `transformers_agent` samples from a model in this process on
the kept cache of `cache`, `slots` and `slot_model`; `vllm` has vLLM's engine do it, here or in servers; `openai_agent`
lets a chat endpoint write the turns (`conversation`, `chat_endpoint`); `scripted` replies without a model. `building`
makes one from its settings in `config`.
"""
