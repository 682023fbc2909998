"""What the design promises, held against the public API alone: one sentence a test, on both databases."""
