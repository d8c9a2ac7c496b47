"""A task that learns nothing, to measure the framework around training at any number of devices.

Knows device numbers and one small linear map; no data.
"""
