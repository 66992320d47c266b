"""The policy versions of an engine: their adapters, loaded on demand and checked."""
