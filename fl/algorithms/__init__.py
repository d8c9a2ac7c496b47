"""What a federation does: who trains which tensors, and how updates become one.

Knows neither Flower nor the loop that drives it.
"""
