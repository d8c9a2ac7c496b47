"""What is federated: adapters, bases, speech data, metrics, the shared/private split, the wire and privacy."""

__version__ = "0.1.0"
