"""Sampling with vLLM, in this process or in servers; all that knows of vLLM is here.

`vllm_agent` drives `vllm_engine`. `vllm_server` is the agent for servers: `server_fleet` knows which are there,
`server_sessions` sends turns and takes in what comes of them, `vllm_client` talks to one server, `server_checks`
refuses one in words, `weight_transfer` hands weights over, `vllm_launch` starts servers that `keeper` ends. Both agents
know the model by `sampled_model`, and both kinds of engine are started by `engine_settings`. `vllm_routes` and
`vllm_worker` run inside a server; `server_protocol` is what both ends agree on.
"""
