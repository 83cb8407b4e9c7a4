"""Files <-> named arrays: readers, writer, and the names that weights have on disk."""
