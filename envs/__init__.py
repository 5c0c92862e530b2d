"""Environments in which a policy of text calls tools and then answers.

Read `grammar` (what a turn of text means), `tasks`, `base` (`ToolEnv`, the Gymnasium contract) and `forking`, in this
order; then an environment: `gsm8k`, `wordmath` and `competition` on top of `math_env`, `hotpotqa` and `multihop` on
top of `search_env`. `question_sets` and `search_sets` have more sets of questions, `verl` reads files in the layout of
that trainer, and `mixture` draws from several environments by weight. `checking` is the contract as code, for authors
of environments.

Importing this package registers the rows of ``ENVS`` with Gymnasium. Environments of another package register
themselves in the same way: its module calls ``gymnasium.register`` when it is imported, and its ``pyproject.toml``
names the module, so that ``load_plugins`` imports it::

    [project.entry-points."forkgym.envs"]
    mine = "my_package.envs"
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import gymnasium as gym

from forkgym.envs import vector_space as vector_space  # registers TextSpace with gymnasium.vector
from forkgym.envs.forking import fork as fork
from forkgym.envs.vector import vector_entry_point

# What `Mixture` mixes where nothing is said: the two that need no data.
MIXTURE = {"forkgym/WordMath-v0": 0.5, "forkgym/MultiHop-v0": 0.5}
# Id, entry point and arguments. The modules are imported by ``gymnasium.make``.
ENVS: tuple[tuple[str, str, Mapping[str, Any]], ...] = (
    ("forkgym/GSM8K-v0", "forkgym.envs.gsm8k:GSM8KEnv", {}),
    ("forkgym/MATH-v0", "forkgym.envs.competition:MATHEnv", {}),
    ("forkgym/MATH500-v0", "forkgym.envs.competition:MATH500Env", {}),
    ("forkgym/AIME-v0", "forkgym.envs.competition:AIMEEnv", {}),
    ("forkgym/HotpotQA-v0", "forkgym.envs.hotpotqa:HotpotQAEnv", {}),
    ("forkgym/2WikiMultihopQA-v0", "forkgym.envs.search_sets:TwoWikiEnv", {}),
    ("forkgym/MuSiQue-v0", "forkgym.envs.search_sets:MuSiQueEnv", {}),
    ("forkgym/Bamboogle-v0", "forkgym.envs.search_sets:BamboogleEnv", {}),
    ("forkgym/WebWalkerQA-v0", "forkgym.envs.search_sets:WebWalkerQAEnv", {}),
    ("forkgym/VerlMath-v0", "forkgym.envs.verl:VerlMathEnv", {}),
    ("forkgym/VerlSearch-v0", "forkgym.envs.verl:VerlSearchEnv", {}),
    ("forkgym/WordMath-v0", "forkgym.envs.wordmath:WordMathEnv", {}),
    ("forkgym/MultiHop-v0", "forkgym.envs.multihop:MultiHopEnv", {}),
    ("forkgym/Mixture-v0", "forkgym.envs.mixture:MixtureEnv", {"envs": MIXTURE}),
)
PLUGIN_GROUP = "forkgym.envs"


def load_plugins() -> None:
    """Import the modules that installed packages name in the entry-point group ``forkgym.envs``; scripts call it.

    A module is imported once; an error inside it is its author's to see, and propagates.
    """
    for point in entry_points(group=PLUGIN_GROUP):
        point.load()


for env_id, entry_point, arguments in ENVS:
    gym.register(
        id=env_id,
        entry_point=entry_point,
        vector_entry_point=vector_entry_point(entry_point),
        kwargs=dict(arguments),
    )
