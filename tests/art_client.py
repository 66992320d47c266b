"""openpipe-art, the real client, without the side effect of its import.

The import replaces a function of transformers with one for an older release, which breaks every model that is loaded
later. The client doesn't need it, so this module restores the original.
"""

import os

os.environ.pop("WANDB_API_KEY", None)  # with it, train() would call an external service
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")

import transformers.masking_utils as masking_utils

_own = masking_utils._preprocess_mask_arguments

import art  # noqa: E402

masking_utils._preprocess_mask_arguments = _own

__all__ = ["art"]
