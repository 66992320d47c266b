"""Request bodies: receive, decode and spool them to disk. Knows neither routes nor the store."""
