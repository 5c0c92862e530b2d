"""What a vLLM server with our routes and its client agree on. Imports nothing, as the two have different libraries."""

from __future__ import annotations

PROTOCOL = 1  # grows where the two would no longer understand one another
PREFIX = "/forkgym/"  # of the routes
KEY_VARIABLE = "FORKGYM_SERVER_KEY"  # in the environment of both; a server that has one takes no request without it
WRONG_STATE = 409  # status of a reply: the server has other weights, or no such session
MIDDLEWARE = "forkgym.agents.vllm.vllm_routes.TurnRoutes"
WORKER_EXTENSION = "forkgym.agents.vllm.vllm_worker.WeightReceiver"
