"""A bare torch loop around a pair: `python -m examples.bare_loop DIR pairs.jsonl -o TRAINED --steps 100`.

What `warmstart train` adds to this: phases and rates of the parts, evaluation, checkpoints, many processes.
"""

from __future__ import annotations

import torch

from examples.common import batches, load, parse


def main(words: list[str] | None = None) -> list[float]:
    """Train, save, give the losses."""
    arguments = parse(__doc__, words)
    model, tokenizers, examples = load(arguments)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.rate)
    losses = []
    model.train()
    for batch in batches(model, examples, arguments):
        loss = model(**batch).loss  # labels are shifted inside, -100 is left out
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        print(f"step {len(losses)}: loss {losses[-1]:.3f}")
    model.save_pretrained(arguments.output, encoder_tokenizer=tokenizers[0], decoder_tokenizer=tokenizers[1])
    return losses


if __name__ == "__main__":
    main()
