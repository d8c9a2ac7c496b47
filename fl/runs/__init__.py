"""What a run leaves on disk: names, rows and files.

Knows no strategy and no page that shows it.
"""
