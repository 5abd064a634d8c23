"""Convolutions of an image decoder, with the norm, the upsampling or the sum around them; see README.md."""
