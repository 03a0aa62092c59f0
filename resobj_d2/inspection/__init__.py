"""What is in a data set, what is wrong with it, and whether a model's anchors fit its objects."""
