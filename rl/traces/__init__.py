"""Traces: what each trained token had at its gradient step, mapped back from packed rows to trajectories."""
