"""FusedAttention in its signatures: softmax(scale · q kᵀ) v without a transpose, split or concat around it; see README.md."""
