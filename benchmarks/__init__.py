"""Scripts behind each figure of the README. Run one with ``python -m benchmarks.<name>``."""
