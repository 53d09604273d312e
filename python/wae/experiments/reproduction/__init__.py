"""The parts of ``wae reproduce``: the claims, the trainings of each, their results, and the table."""
