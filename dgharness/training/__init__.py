"""The learner, the loop, checkpoints and evaluation."""
