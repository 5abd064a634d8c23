"""Measurements: cases as data, one timer, peers in processes of their own, a correctness check before every number."""
