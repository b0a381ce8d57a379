"""Training: the schedule, the checkpoint, the loop."""
