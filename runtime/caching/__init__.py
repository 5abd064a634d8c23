"""State of the step caches."""
