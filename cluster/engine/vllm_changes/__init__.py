"""Changes to vLLM, made inside its own processes: corrections, faster paths, and base models that it fails to import.

A module here replaces, wraps or extends code of vLLM in a process that imports vLLM, and its docstring says why that
is necessary. vLLM finds `worker_extension.Extension`, `cpu_moe.Worker` and `clean_blocks.scheduler` by their dotted
paths, which the arguments of the engine name. Importing a module of this package imports no vLLM.
"""
