"""Training (SPEC section 3): the losses, the linear start, and the loop."""
