"""Taylor prediction of a denoiser's outputs over steps."""
