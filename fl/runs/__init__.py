"""What a run leaves on disk: the names of its files, what each holds, and how they are written and read.

Knows no strategy, no device and no page that shows it: values go in and come out as plain numbers, texts and counts.
"""
