"""Training by a loop of the user's own: datums with a loss of one token each, accumulated until an optimizer step."""
