"""GatedResidual: a block's branch, gated by a row of the request's modulation table, added to its input; see README.md."""
