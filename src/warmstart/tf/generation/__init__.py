"""Everything that `generate` does in TensorFlow: what a call asks for, and the searches, in graphs."""
