"""The commands of ``wae``, one module each. :mod:`wae.cli` describes how they are found and run."""
