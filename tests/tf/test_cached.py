"""Every decoder of every family in TensorFlow: one pass, and decoding in steps with a cache, give what torch gives."""

import pytest
import tensorflow as tf

import tiny_models
from warmstart import TFAutoModelForCausalLM
from warmstart.families import MODULES, family


@pytest.mark.parametrize("name", [*(name for name in MODULES if family(name).decoder), *tiny_models.ODD])
def test_steps_are_those_of_torch(name, tmp_path, zoo):
    _, ids, source, whole, steps = tiny_models.decoder(name, tmp_path)
    model = TFAutoModelForCausalLM.from_pretrained(tmp_path)
    zoo.assert_close(model(ids, encoder_hidden_states=source).logits, whole, "one pass")
    for capacity in (None, 6):  # a cache that grows, and one of a fixed size
        cache, found = model.new_cache(capacity), []
        for start, end in tiny_models.STEPS:
            output = model(ids[:, start:end], encoder_hidden_states=source, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            found.append(output.logits)
        zoo.assert_close(tf.concat(found, 1), steps, f"in steps, with room for {capacity}")
