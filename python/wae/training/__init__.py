"""Training: the losses, the linear start, and the loop."""
