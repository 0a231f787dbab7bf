"""Numbers about predictions: pure functions of arrays, and their intervals."""
