"""The numbers of a run and where they are shown: terminal, TensorBoard, plot."""
