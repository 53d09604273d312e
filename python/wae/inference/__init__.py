"""Networks as they are used: engines, the deployed form, export, prediction, and timing."""
