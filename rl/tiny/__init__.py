"""The built-in tiny model and the recipe that makes it."""
