"""What a job says of its data: what trained and what didn't, how old and how spread it was, and its pictures."""
