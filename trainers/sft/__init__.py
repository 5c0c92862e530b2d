"""The cold start: demonstrations (`sources`, `conversations`), and fine-tuning on what a policy would write of them."""
