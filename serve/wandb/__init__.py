"""The part of the W&B API that clients need to upload training data and to load, fork and upload checkpoints.

With `WANDB_BASE_URL` set to a Tandem service, the unmodified wandb package finds here what openpipe-art asks of it:
GraphQL operations on artifacts, and signed URLs for their files. Runs exist only as far as the package needs one to
upload an artifact: their metrics, console output and files are not kept.
"""
