"""One page that shows what is wrong with a detector, as one file without a network."""
