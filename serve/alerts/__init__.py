"""Alerts: what is wrong now, for whom, and what to do; kept in the store, shown by the API, sent to webhooks."""
