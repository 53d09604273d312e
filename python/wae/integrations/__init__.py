"""Integrations with other libraries. Only the commands that need these modules import them."""
