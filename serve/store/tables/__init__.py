"""The tables of the store, by the part of the service that they serve."""
