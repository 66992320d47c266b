"""States of models: kept in memory, read from the artifacts, and finished but not yet written."""
