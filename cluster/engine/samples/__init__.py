"""Samples for clients of the Tinker API: token ids in, token ids and logprobs out, kept until they are fetched."""
