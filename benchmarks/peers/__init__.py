"""Other simulators that train the same thing, each in an environment of its own."""
