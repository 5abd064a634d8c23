"""Step caches: when a denoising step is computed, and what stands in for it when it is not."""
