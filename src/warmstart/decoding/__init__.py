"""The decoding algorithms, written once over a small array namespace: settings, processors, searches, stopping.

Nothing here knows a framework. A driver (one per framework) runs the model, and calls, once per token, pure functions
``(state, scores) -> state`` whose arrays keep their shapes, so that the loop may be Python's, ``lax.while_loop`` or
``tf.while_loop``. Constraints alone run in Python, for which tokens they ask for differs from row to row.
"""
