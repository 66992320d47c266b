"""Samples for the Tinker API: from a client's request to an engine replica, and back."""
