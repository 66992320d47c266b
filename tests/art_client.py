"""openpipe-art, the real client, without what its import does to the rest of the process.

It replaces a function of transformers with one written for an older release, which breaks every model loaded
afterwards. The client itself needs none of it, so transformers' own function is put back.
"""

import os

os.environ.pop("WANDB_API_KEY", None)  # with it, train() would call a service outside
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import transformers.masking_utils as masking_utils

_own = masking_utils._preprocess_mask_arguments

import art  # noqa: E402

masking_utils._preprocess_mask_arguments = _own

__all__ = ["art"]
