"""Data that clients upload beside jobs, and the index that finds all trajectories."""
