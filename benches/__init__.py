"""The benchmarks (``bench_*.py``), the machinery that times them, and the tables and plots of their results.

``python -m pytest benches`` runs them; docs/benchmarks.md describes the method.
"""
