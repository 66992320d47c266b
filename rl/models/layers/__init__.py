"""Layers of a base model that are computed in another way than their own code: faster, or exact for packed rows."""
