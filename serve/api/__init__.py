"""HTTP: routes, authentication, wire types, and errors as responses."""
