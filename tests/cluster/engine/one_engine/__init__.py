"""The engine on real vLLM, in a Ray actor as in the service, against transformers and PEFT.

One engine serves all tests of this folder, so one process runs them all; the last test ends it. Its KV cache holds 512
tokens, two of the longest sequences, so that requests wait, are prefilled in chunks, preempt one another and share
prefixes all the time.

The folder is a package, because pytest then ends its fixtures of scope `package` after the last of its tests.
"""
