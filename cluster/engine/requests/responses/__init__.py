"""OpenAI's Responses: the fields of their requests, and what is added to their answers."""
