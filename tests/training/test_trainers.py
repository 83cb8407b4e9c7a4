"""The model trains as it is under transformers' Seq2SeqTrainer and in a bare loop, with the same losses as here."""

import pytest
import torch

import tiny_models
from tiny_models import END
from training.conftest import made, write_json_lines
from warmstart.training.batches import Order, collate
from warmstart.training.examples import Limits, load_examples
from warmstart.training.log import read_log
from warmstart.training.loop import train
from warmstart.training.pairs import Data
from warmstart.training.recipe import Recipe, parameter_groups
from warmstart.training.run import Run

RATE, STEPS = 5e-3, 6


@pytest.fixture
def examples(reads, writes, tmp_path):
    return load_examples(Data(write_json_lines(tmp_path / "p.jsonl", made(48))), reads, writes, END, Limits(12, 6))


def fresh():
    model = tiny_models.pair("bert", "gpt2", spread=0.05)
    model.generation_config.max_new_tokens = 5
    return model


def test_a_bare_loop_has_the_losses_of_train(examples, reads, writes, tmp_path):
    recipe = Recipe(RATE, RATE, RATE, cross_attention_first=0.0)
    run = Run(tmp_path / "out", steps=STEPS, batch_tokens=150, log_every=1, evaluate_every=STEPS, cpu=True)
    train(fresh(), (reads, writes), examples, None, [], run, recipe)
    model = fresh().train()
    optimizer = torch.optim.AdamW(parameter_groups(model, recipe))
    order, losses = Order(examples, 150, 0), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(group["part"], step, STEPS)
        loss = model(**collate(examples, order.rows(step), 0), label_smoothing=0.1).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    ours = [event["loss"] for event in read_log(tmp_path / "out") if "loss" in event]
    assert ours == pytest.approx(losses, abs=1e-5)


def rows(examples):
    return [
        {"input_ids": examples.source(row).tolist(), "labels": examples.labels(row).tolist()}
        for row in range(len(examples))
    ]


def trainer(examples, folder, size, parts, **saving):
    transformers = pytest.importorskip("transformers")

    def pad(features):
        longest = {name: max(len(one[name]) for one in features) for name in ("input_ids", "labels")}
        fill = {"input_ids": 0, "labels": -100}
        return {
            name: torch.tensor([one[name] + [fill[name]] * (longest[name] - len(one[name])) for one in features])
            for name in longest
        }

    arguments = transformers.Seq2SeqTrainingArguments(
        str(folder),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=parts,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        max_steps=STEPS,
        logging_steps=1,
        **{"save_strategy": "no", **saving},
        predict_with_generate=True,
        report_to=[],
        use_cpu=True,
        seed=0,
    )
    data = rows(examples)
    return transformers.Seq2SeqTrainer(
        model=fresh(), args=arguments, data_collator=pad, train_dataset=data, eval_dataset=data[:8]
    )


@pytest.mark.v5
def test_seq2seq_trainer_trains_accumulates_and_generates(examples, tmp_path):
    whole, parts = (trainer(examples, tmp_path / str(count), 8 // count, count) for count in (1, 4))
    losses = []
    for one in (whole, parts):
        one.train()
        losses.append([event["loss"] for event in one.state.log_history if "loss" in event])
    assert len(losses[0]) == STEPS and losses[0][-1] < losses[0][0]
    assert losses[0] == pytest.approx(losses[1], abs=2e-4)  # accumulation is the large batch, not a multiple of it
    found = whole.predict(rows(examples)[:8])
    assert found.predictions.shape[0] == 8 and found.predictions.shape[1] > 1
    whole.model.save_pretrained(tmp_path / "saved")
    loaded = type(whole.model).from_pretrained(tmp_path / "saved")
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in whole.model.state_dict().items())


def test_seq2seq_trainer_goes_on_from_its_own_checkpoints(examples, tmp_path):
    """Version 4 writes weights that are tied as `.bin`."""
    saving = {"save_strategy": "steps", "save_steps": STEPS // 2, "save_safetensors": False}
    through = trainer(examples, tmp_path, 8, 1, **saving)
    through.train()
    again = trainer(examples, tmp_path, 8, 1, **saving)
    again.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}"))
    expected = through.model.state_dict()
    assert all(torch.allclose(value, expected[name]) for name, value in again.model.state_dict().items())
