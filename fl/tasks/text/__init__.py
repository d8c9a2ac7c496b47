"""A task on text: which language each word of a mixed sentence is in."""
