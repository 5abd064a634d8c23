"""Choosing a step cache for one artifact on one machine: measure, compare pictures, search."""
