"""Requests to an engine: their checks, vLLM's routes, and additions to the answers.

`chat`, `messages` and `responses` hold the rules of one protocol each; the modules beside them serve all of them.
"""
