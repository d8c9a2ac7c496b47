"""Scripts behind each figure of docs/benchmarks.md. Run one with ``python -m benchmarks.<name>``.

They know all four packages, which know nothing of them; each row in ``results`` carries its machine, versions and seed.
"""
