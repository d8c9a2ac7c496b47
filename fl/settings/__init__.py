"""The settings of a run: what each is called, what it may be, and which of them contradict each other.

Knows no model, no data and no message.
"""
