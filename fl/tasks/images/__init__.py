"""A task on images: handwritten digits of simulated writers.

Knows scikit-learn's digits and a small ViT that is trained on public ones.
"""
