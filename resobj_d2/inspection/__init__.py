"""What is in a dataset, what is wrong with it, and whether a model's anchors fit its objects."""
