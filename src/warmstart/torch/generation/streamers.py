"""Streamers: what takes the tokens of `generate` as they come, and gives text.

Shapes: r rows, p prompt length.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Iterator
from queue import Queue
from typing import Any

from torch import Tensor

CJK = (
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x2CEAF),
    (0x2F800, 0x2FA1F),
)
"""Code points of Chinese characters, which stand without spaces between them (Unicode, blocks of CJK ideographs)."""


class TextStreamer:
    """Prints text as soon as whole words are there; of several rows, line by line with the row before it.

    `decode_kwargs` go to the tokenizer's `decode`. To do something else with the text override `on_finalized_text`.

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return "".join(" abc"[i] for i in ids)
    >>> import torch
    >>> streamer = TextStreamer(Letters())
    >>> streamer.put(torch.tensor([[1, 2, 0, 3]])); streamer.end()
    ab c
    """

    def __init__(self, tokenizer: Any, skip_prompt: bool = False, **decode_kwargs: Any) -> None:
        self.tokenizer, self.skip_prompt, self.decode_kwargs = tokenizer, skip_prompt, decode_kwargs
        self._rows: list[_Row] | None = None  # None until the prompt has come

    def put(self, value: Tensor) -> None:
        """Take the prompt (r, p), then the newest token of each row (r,)."""
        columns = value[:, None] if value.ndim == 1 else value
        first = self._rows is None
        if self._rows is None:
            self._rows = [_Row() for _ in columns]
        if first and self.skip_prompt:
            return
        for number, (row, tokens) in enumerate(zip(self._rows, columns.tolist(), strict=True)):
            if not row.ended:
                self._give(number, row.add(tokens, self._decode), False)

    def end_rows(self, rows: Tensor) -> None:
        """These rows have ended: what is left of their text is given out, and more of them is not expected."""
        for number in rows.tolist():
            row = (self._rows or [])[number]
            if not row.ended:
                row.ended = True
                if len(self._rows or []) > 1:
                    self._give(number, row.rest(self._decode), True)

    def end(self) -> None:
        """All rows have ended."""
        rows = self._rows or [_Row()]
        for number, row in enumerate(rows):
            if len(rows) == 1 or not row.ended:
                self._give(number, row.rest(self._decode), True)
        self._rows = None

    def fail(self, error: BaseException) -> None:
        """`generate` ended with an error."""
        self._rows = None

    def on_finalized_text(self, text: str, stream_end: bool = False, row: int | None = None) -> None:
        """Do something with text that is complete; `row` is None where there is one row alone."""
        if row is None:
            sys.stdout.write(text + ("\n" if stream_end else ""))
        elif text:
            sys.stdout.write(f"{row}: {text.rstrip()}\n")
        sys.stdout.flush()

    def _give(self, number: int, text: str, ended: bool) -> None:
        if len(self._rows or [None]) == 1:
            self.on_finalized_text(text, stream_end=ended)
        elif text or ended:
            self.on_finalized_text(text, stream_end=ended, row=number)

    def _decode(self, tokens: list[int]) -> str:
        return str(self.tokenizer.decode(tokens, **self.decode_kwargs))


class _Row:
    """One row's tokens that are not yet given out as text."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.given = 0  # how many letters of their text are out
        self.ended = False

    def add(self, tokens: list[int], decode: Any) -> str:
        """Take tokens in; the text that cannot change any more."""
        self.tokens += tokens
        text = decode(self.tokens)
        if text.endswith("\n"):
            new = text[self.given :]
            self.tokens, self.given = [], 0
            return new
        cjk = text != "" and any(low <= ord(text[-1]) <= high for low, high in CJK)
        end = len(text) if cjk else text.rfind(" ") + 1
        new = text[self.given : end]
        self.given = max(self.given, end)
        return new

    def rest(self, decode: Any) -> str:
        """The text that is left."""
        new = decode(self.tokens)[self.given :] if self.tokens else ""
        self.tokens, self.given = [], 0
        return new


class TextIteratorStreamer(TextStreamer):
    """An iterator of text, while `generate` runs in another thread: pieces, or for several rows pairs (row, piece).

    `timeout` is how many seconds to wait for a piece (`queue.Empty` then; None waits on). An error in `generate` is
    raised by the iterator. After `close`, `generate` ends at its next token.

    >>> class Letters:
    ...     def decode(self, ids):
    ...         return "".join(" abc"[i] for i in ids)
    >>> import torch
    >>> streamer = TextIteratorStreamer(Letters())
    >>> for token in (1, 2, 0, 3):
    ...     streamer.put(torch.tensor([token]))
    >>> streamer.end()
    >>> "".join(streamer)
    'ab c'
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, **decode_kwargs)
        self.timeout = timeout
        self.closed = False
        self._queue: Queue[Any] = Queue()

    def put(self, value: Tensor) -> None:
        if self.closed:
            raise StreamClosed("the reader has closed the stream")
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False, row: int | None = None) -> None:
        self._send(text if row is None else (row, text))

    def end(self) -> None:
        super().end()
        self._send(_END)

    def fail(self, error: BaseException) -> None:
        super().fail(error)
        self._send(_END if isinstance(error, StreamClosed) else error)

    def close(self) -> None:
        """Read no more."""
        self.closed = True

    def _send(self, item: Any) -> None:
        self._queue.put(item)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        item = self._queue.get(timeout=self.timeout)
        if item is _END:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        return item


class AsyncTextIteratorStreamer(TextIteratorStreamer):
    """As `TextIteratorStreamer`, for `async for`; make it inside the running loop.

    Raises:
        TimeoutError: no piece came in `timeout` seconds.
    """

    def __init__(
        self, tokenizer: Any, skip_prompt: bool = False, timeout: float | None = None, **decode_kwargs: Any
    ) -> None:
        super().__init__(tokenizer, skip_prompt, timeout, **decode_kwargs)
        self.loop = asyncio.get_running_loop()
        self._pieces: asyncio.Queue[Any] = asyncio.Queue()

    def _send(self, item: Any) -> None:
        self.loop.call_soon_threadsafe(self._pieces.put_nowait, item)

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            item = await asyncio.wait_for(self._pieces.get(), self.timeout)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            raise TimeoutError(f"no text came in {self.timeout} seconds") from None
        if item is _END:
            raise StopAsyncIteration
        if isinstance(item, BaseException):
            raise item
        return item


class StreamClosed(Exception):
    """The reader of a stream wants no more."""


_END = object()


class Stream:
    """A streamer as the loops of `generate` see it: any object with `put` and `end`, or none."""

    def __init__(self, streamer: Any = None) -> None:
        """Raises ValueError if it is no streamer."""
        if streamer is not None and not (callable(getattr(streamer, "put", None)) and hasattr(streamer, "end")):
            raise ValueError(
                f"streamer is a {type(streamer).__name__}; it must have put(ids) and end(): TextStreamer ..."
            )
        self.streamer = streamer

    def prompt(self, ids: Tensor) -> None:
        """The prompt (r, p)."""
        if self.streamer is not None:
            self.streamer.put(ids.cpu())

    def tokens(self, newest: Tensor, ended: Tensor) -> None:
        """The newest token of each row (r,), and which rows have ended with it or before."""
        if self.streamer is not None:
            self.streamer.put(newest.cpu())
            if hasattr(self.streamer, "end_rows"):
                self.streamer.end_rows(ended)

    def end(self) -> None:
        """All is said."""
        if self.streamer is not None:
            self.streamer.end()

    def fail(self, error: BaseException) -> None:
        """Tell a reader in another thread, so that it does not wait for ever."""
        if hasattr(self.streamer, "fail"):
            self.streamer.fail(error)
