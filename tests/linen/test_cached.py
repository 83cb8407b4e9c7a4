"""Every decoder of every family in Flax: decoding in steps with a cache gives what one pass gives in torch."""

import jax.numpy as jnp
import pytest

import tiny_models
from warmstart import FlaxAutoModelForCausalLM
from warmstart.families import MODULES, family


@pytest.mark.parametrize("name", [*(name for name in MODULES if family(name).decoder), *tiny_models.ODD])
def test_steps_are_those_of_torch(name, tmp_path, assert_close):
    _, ids, source, whole, steps = tiny_models.decoder(name, tmp_path)
    model = FlaxAutoModelForCausalLM.from_pretrained(tmp_path)
    cache, found = model.init_cache(2, 6), []
    for start, end in tiny_models.STEPS:  # of one length: they compile once
        output = model(ids[:, start:end], encoder_hidden_states=source, past_key_values=cache)
        cache = output.past_key_values
        found.append(output.logits)
    assert_close(jnp.concatenate(found, 1), steps, "in steps")
    if name not in ("llama-dynamic", "llama-longrope"):  # whose keys turn otherwise once the text is longer
        assert_close(steps, whole, "in steps and in one pass")
