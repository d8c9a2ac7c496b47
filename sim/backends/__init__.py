"""Where a run happens: Ray, this process, or nothing but the framework.

Knows both Flower apps; nothing of reports.
"""
