"""The model to xDS: pure functions, one module per kind of resource."""
