"""The demonstration: simulated card transactions, and what `pgoutlier demo` does with them."""
