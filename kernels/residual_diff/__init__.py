"""ResidualDiff: the first-block residual and how far it moved; see README.md."""
