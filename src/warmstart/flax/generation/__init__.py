"""Everything that `generate` does in JAX: what a call asks for, and the searches, compiled."""
