"""Helpers of the Python tests: references, inputs, layouts, tolerances."""
