"""Whether two answers mean the same mathematics: as text, as numbers, then in a process that can be killed."""
