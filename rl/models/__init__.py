"""The base model: its configuration, weights, adapter and layers, and the check that it computes packed rows."""
