"""Routes and wire types, in the shapes of OpenAI's SDK."""
