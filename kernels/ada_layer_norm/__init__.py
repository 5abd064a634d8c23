"""AdaLayerNorm and AdaRMSNorm: a norm, scaled and shifted by rows of the request's modulation table; see README.md."""
