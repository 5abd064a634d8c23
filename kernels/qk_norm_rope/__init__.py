"""QkNormRope: RMSNorm per head and the rotary embedding in one pass; see README.md."""
