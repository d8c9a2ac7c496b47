"""Other simulators that train the same thing, each in an environment of its own.

They know this project's task and adapters, and one other simulator each.
"""
