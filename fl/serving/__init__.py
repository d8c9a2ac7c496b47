"""Weight separation: one frozen base on a server, transcribing with the adapter that each person's device brings.

Knows bases, packed adapters and HTTP; nothing of federation, and keeps neither speech nor transcripts.
"""
