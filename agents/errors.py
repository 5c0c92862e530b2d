"""What an agent raises when its engine can't be trusted or reached any more."""

from __future__ import annotations


class AgentFailure(RuntimeError):
    """The engine failed, or samples from weights that nobody trains; the message says why.

    Nothing that it sampled since is to be trained on, so a run ends here.
    """
