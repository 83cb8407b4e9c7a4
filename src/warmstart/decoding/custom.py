"""The classes that code written for `transformers` puts its own processors and stopping rules in; functions do as well.

Shapes: r rows, n length, v vocabulary.
"""

from __future__ import annotations

from typing import Any


class LogitsProcessor:
    """A processor of your own: a subclass's `__call__` takes ids (r, n) and scores (r, v), and gives scores (r, v).

    In JAX and TensorFlow it is traced, and takes the number of tokens so far as well.
    """

    def __call__(self, input_ids: Any, scores: Any, *more: Any) -> Any:
        """Scores (r, v) after this processor.

        Raises:
            NotImplementedError: the subclass does not say how.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class LogitsProcessorList(list[Any]):
    """Processors, of which each gets the scores of the one before it; `generate` takes any other list as well.

    >>> halve = LogitsProcessorList([lambda ids, scores: scores / 2, lambda ids, scores: scores + 1])
    >>> halve(None, 8.0)
    5.0
    """

    def __call__(self, input_ids: Any, scores: Any, *more: Any) -> Any:
        """Scores (r, v) after all of them."""
        for processor in self:
            scores = processor(input_ids, scores, *more)
        return scores


class StoppingCriteria:
    """A rule of your own that ends rows: a subclass's `__call__` takes ids (r, n) and the scores so far, or None, and
    gives booleans (r,), or one for all.

    In JAX and TensorFlow it is traced, and takes the number of tokens so far in place of scores.
    """

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """Booleans (r,), or one.

        Raises:
            NotImplementedError: the subclass does not say how.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__(input_ids, scores)")


class StoppingCriteriaList(list[Any]):
    """Rules, of which each may end a row; `generate` takes any other list as well.

    >>> StoppingCriteriaList([lambda ids, scores: True, lambda ids, scores: False])(None, None)
    True
    """

    def __call__(self, input_ids: Any, scores: Any, **more: Any) -> Any:
        """Booleans (r,), or one: which rows any of them ends."""
        ended: Any = False
        for rule in self:
            ended = ended | rule(input_ids, scores, **more)
        return ended


FlaxLogitsProcessor = TFLogitsProcessor = LogitsProcessor
FlaxLogitsProcessorList = TFLogitsProcessorList = LogitsProcessorList
