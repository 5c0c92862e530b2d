"""What a run leaves and shows: its folder, checkpoints, figures with their meaning, alarms, the learning curve."""
