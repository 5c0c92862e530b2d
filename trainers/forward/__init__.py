"""The model's forward for the loss: log-probs of trajectories, with each token that they share computed once.

`forwards` has the table of forwards by name and the split into micro-batches; `measures` what goes in and comes out.
"""
