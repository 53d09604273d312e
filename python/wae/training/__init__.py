"""Training: losses, plans, starting weights, and the training loop."""
