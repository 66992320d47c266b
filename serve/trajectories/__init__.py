"""Trajectories as people look at them: an index over the payloads of jobs and logs, its search, and its retention."""
