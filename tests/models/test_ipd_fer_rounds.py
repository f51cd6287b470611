"""A round of training: crop sides, rates, the epoch that is kept, and processes that share it."""

import subprocess
import sys

import pytest
import torch
from ipd_fer_tiny import differing
from two_processes import launch

from facezoo.models.ipd_fer.train.recipes import StageConfig
from facezoo.models.ipd_fer.train.rounds import adam, fit
from facezoo.training.optim import descend

INDEX = torch.zeros(2, 4, dtype=torch.long)


def line():
    """A part to train, its step and what the step saw."""
    part, sides, rates = torch.nn.Linear(2, 1), [], []

    def step_of(optimizer):
        def step(chosen, size, draw):
            sides.append(size)
            rates.append(optimizer.param_groups[0]["lr"])
            loss = part(torch.rand(len(chosen[0]), 2, generator=draw)).square().mean()
            descend(optimizer, loss)
            return {"loss": loss.detach()}

        return step

    return part, step_of, sides, rates


def test_the_crop_side_follows_the_recipe_and_the_best_epoch_at_the_last_side_is_kept(tmp_path):
    part, step_of, sides, _ = line()
    scores, states = iter([0.9, 0.5, 0.7, 0.6]), []

    def validate(network, *_):
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"score": next(scores)}

    config = StageConfig(epochs=4, sizes=((0, 8), (1, 16)), batch_size=2, rate=0.1)
    optimizer = adam(part, config)
    step = step_of(optimizer)
    kept = fit(part, [optimizer], config, INDEX, step, validate, "score", tmp_path / "stage", 0)
    assert sides == [8, 8] + [16] * 6
    assert differing(kept, states[2]) == []


def test_the_rate_falls_to_a_tenth_after_ten_epochs_and_again_after_twenty(tmp_path):
    part, step_of, _, rates = line()
    config = StageConfig(21, ((0, 8),), batch_size=4, rate=0.5, schedule="tenth", average=0.0)
    optimizer = adam(part, config)
    fit(part, [optimizer], config, INDEX, step_of(optimizer), lambda *_: {}, None, tmp_path, 0)
    assert rates == pytest.approx([0.5] * 10 + [0.05] * 10 + [0.005])


def test_a_cosine_starts_anew_with_every_cycle(tmp_path):
    def rates_of(epochs, cycles):
        part, step_of, _, rates = line()
        config = StageConfig(epochs, ((0, 8),), batch_size=2, warmup=0.25, cycles=cycles)
        optimizer = adam(part, config)
        fit(part, [optimizer], config, INDEX, step_of(optimizer), lambda *_: {}, None, out, 0)
        return rates

    out = tmp_path / "once"
    once = rates_of(3, 1)
    out = tmp_path / "twice"
    assert rates_of(6, 2) == pytest.approx(once * 2)
    assert once[-1] < once[2]


def test_without_an_average_the_weights_themselves_are_kept(tmp_path):
    part, step_of, *_ = line()
    config = StageConfig(2, ((0, 8),), batch_size=4, rate=0.5, average=0.0)
    optimizer = adam(part, config)
    kept = fit(
        part, [optimizer], config, INDEX, step_of(optimizer), lambda *_: {}, None, tmp_path, 0
    )
    assert differing(kept, part.state_dict()) == []


def test_a_round_that_never_comes_to_its_last_side_is_refused(tmp_path):
    part, step_of, *_ = line()
    config = StageConfig(epochs=2, sizes=((0, 8), (2, 16)), batch_size=2)
    with pytest.raises(ValueError, match="never comes in 2 epochs"):
        fit(part, [], config, INDEX, step_of(None), lambda *_: {}, None, tmp_path, 0)


@pytest.mark.parametrize("broken_at", [3, 4])
def test_a_round_interrupted_within_an_epoch_or_before_its_end_logs_what_a_whole_one_does(
    tmp_path, broken_at
):
    index = torch.zeros(2, 8, dtype=torch.long)
    config = StageConfig(2, ((0, 8),), batch_size=2, rate=0.1)

    def run(out, seen, stop=None):
        torch.manual_seed(0)
        part, step_of, *_ = line()
        optimizer = adam(part, config)
        plain = step_of(optimizer)

        def step(*arguments):
            seen.append(1)
            if len(seen) == stop:
                raise KeyboardInterrupt
            return plain(*arguments)

        def validate(*_):
            if len(seen) + 1 == stop:  # all steps of the epoch are done and saved
                raise KeyboardInterrupt
            return {}

        fit(part, [optimizer], config, index, step, validate, None, out, 0, save_every=1)

    run(tmp_path / "whole", [])
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", [], stop=broken_at + 1)
    run(tmp_path / "parts", [])
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]


SHARED = """
import sys, torch
from pathlib import Path
from facezoo.models.ipd_fer.train.recipes import StageConfig
from facezoo.models.ipd_fer.train.rounds import adam, fit
from facezoo.training.optim import descend
from facezoo.training.processes import Processes
torch.manual_seed(0)
part, rows = torch.nn.Linear(2, 1), torch.arange(16.0).view(8, 2) / 16
config = StageConfig(2, ((0, 8),), batch_size=4, rate=0.05)
optimizer, seen = adam(part, config), []
def step(chosen, size, draw):
    seen.append(chosen[1].tolist())
    loss = part(rows[chosen[1]]).square().mean()
    descend(optimizer, loss)
    return {"loss": loss.detach()}
index = torch.stack([torch.zeros(8, dtype=torch.long), torch.arange(8)])
kept = fit(part, [optimizer], config, index, step, lambda *_: {}, None, Path(sys.argv[1]), 0)
rank = Processes.present().rank
torch.save({"kept": kept, "seen": seen}, f"{sys.argv[1]}/rank{rank}.pt")
"""


def test_processes_that_share_a_round_end_at_the_weights_of_one(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "shared.py"
    script.write_text(SHARED)
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    subprocess.run([sys.executable, script, alone], check=True)
    done = launch(script, both)
    assert done.returncode == 0, done.stderr
    one = torch.load(alone / "rank0.pt", weights_only=True)
    first, second = (torch.load(both / f"rank{r}.pt", weights_only=True) for r in (0, 1))
    for key, value in one["kept"].items():
        torch.testing.assert_close(first["kept"][key], value)
        torch.testing.assert_close(second["kept"][key], value)
    for whole, half, other in zip(one["seen"], first["seen"], second["seen"], strict=True):
        assert sorted(half + other) == sorted(whole)
        assert len(half) == len(other) == 2


NORMED = """
import sys, torch
from pathlib import Path
from facezoo.models.ipd_fer.train.recipes import StageConfig
from facezoo.models.ipd_fer.train.rounds import adam, fit
from facezoo.training.optim import descend
from facezoo.training.processes import Processes
torch.manual_seed(0)
part = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
rows = torch.arange(16.0).view(8, 2) ** 2 / 16
config = StageConfig(2, ((0, 8),), batch_size=4, rate=0.05)
optimizer, seen = adam(part, config), []
def step(chosen, size, draw):
    seen.append(1)
    if len(seen) > int(sys.argv[2]):
        raise SystemExit
    part(rows[chosen[1]])
    part.eval()  # as the discriminator is for the generator's loss
    loss = part(rows[chosen[1]]).square().mean()
    part.train()
    descend(optimizer, loss)
    return {"loss": loss.detach()}
index = torch.stack([torch.zeros(8, dtype=torch.long), torch.arange(8)])
kept = fit(part, [optimizer], config, index, step, lambda *_: {}, None, Path(sys.argv[1]), 0)
torch.save(kept, f"{sys.argv[1]}/rank{Processes.present().rank}.pt")
"""


@pytest.mark.slow
def test_processes_that_are_interrupted_end_at_the_same_weights(tmp_path):
    pytest.importorskip("accelerate")
    script = tmp_path / "normed.py"
    script.write_text(NORMED)

    def run(name, steps):
        (tmp_path / name).mkdir(exist_ok=True)
        done = launch(script, tmp_path / name, steps)
        assert done.returncode == 0, done.stderr

    run("whole", 99)
    run("parts", 2)  # of four, an epoch
    run("parts", 99)
    whole, parts = (
        torch.load(tmp_path / name / "rank0.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert differing(whole, parts) == []
