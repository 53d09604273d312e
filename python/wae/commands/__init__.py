"""The commands of ``wae``, a module each; ``wae.cli`` says how they are found and run."""
