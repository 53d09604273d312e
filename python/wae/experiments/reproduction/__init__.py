"""What ``wae reproduce`` is made of: claims, the trainings of each, their results and the table."""
