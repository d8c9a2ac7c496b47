"""The command ``idiolect``: options, and one module for each group of commands.

Knows how to ask and print; what is done is elsewhere.
"""
