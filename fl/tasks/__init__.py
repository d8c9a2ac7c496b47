"""What can be learnt: the interface of a task, the table of tasks, and each task.

Knows examples, losses and scores; not who trains when.
"""
