"""Methods of adapting a frozen base: gated and plain LoRA, DoRA, bottlenecks, prefixes, biases, all weights, random weights.

Knows models and their tensors; not speech, rounds or messages. The package and its table load without torch.
"""
