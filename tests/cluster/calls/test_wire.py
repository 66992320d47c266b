"""Bodies of forward_backward as the client writes and reads them, and broken ones."""
