"""Gated LoRA: the gates, the PEFT tuner, the shared/private split, and adapters in memory, in batches and on disk.

Knows linear maps, tensors and their names; not speech, rounds or messages. The package and its gates load without torch.
"""
