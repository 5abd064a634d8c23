"""How emoji_flux was made: data, autoencoder, tokenizers, denoiser, and the loss they are judged by."""
