"""Scale on paper: what parts of Tandem cost, measured, and a queueing simulation of a service made of such parts."""
