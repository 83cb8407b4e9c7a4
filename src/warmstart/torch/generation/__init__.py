"""Everything that `generate` does in torch: what a call asks for, the searches, many inputs, streams."""
