"""The benchmarks: what is measured (``bench_*.py``), how, and the tables and plots made of it.

``python -m pytest benches`` runs them; docs/benchmarks.md says how they measure.
"""
