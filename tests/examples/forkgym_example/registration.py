"""What is known by name once this package is installed."""

import gymnasium as gym

gym.register(id="forkgym_example/Letters-v0", entry_point="forkgym_example.letters:LettersEnv")
