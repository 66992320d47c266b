"""The stream of changes: which jobs, events, versions and models of an entity are new, for pages that stay open."""
