"""What the data path is to do, as immutable values; differences between two of them."""
