"""Complete runs that end in a table or a figure: demo, comparison, evaluation, reproduction."""
