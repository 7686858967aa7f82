"""ZeRO stages 2 and 3: gradients, and weights too, kept in one equal part per data-parallel rank."""
