"""What becomes of an update before it leaves: clip, noise, encode, mask, and the reply.

Knows tensors and settings; not how they were trained.
"""
