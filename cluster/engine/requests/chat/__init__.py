"""Chat and text completions: the fields of their requests, and what is added to the choices of their answers."""
