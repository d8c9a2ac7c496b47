"""What is federated: settings, algorithms, adapters, bases, tasks, data, metrics, messages, privacy and serving.

Knows Flower's records, not its clients and servers; imports none of ``clients``, ``strategies`` and ``sim``.
"""

__version__ = "0.2.0"
