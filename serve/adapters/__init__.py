"""Adapters in PEFT's files: downloaded from versions, and imported as versions. Knows no HTTP."""
