"""The rows of training files: their formats, and the checks of each method."""
