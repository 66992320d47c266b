"""Curves of a model: metrics of its versions, thinned to as many points as a chart shows."""
