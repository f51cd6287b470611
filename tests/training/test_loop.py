"""The training loop: schedules, best epoch, EMA, exact resume, and processes that share it."""

import csv
import subprocess
import sys

import pytest
import torch
from torch import nn
from two_processes import launch

from facezoo.training import loop
from facezoo.training.loop import Schedule, fit
from facezoo.training.optim import descend

ROWS = torch.arange(8)
DATA = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))


class Line:
    """A small network in training, with a record of its steps."""

    def __init__(self, lr=0.1, stop=None):
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1)
        )
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=lr)
        self.places, self.lrs, self.stop = [], [], stop

    def step(self, rows, at):
        self.places.append(at)
        self.lrs.append(self.optimizer.param_groups[0]["lr"])
        if len(self.places) == self.stop:
            raise KeyboardInterrupt
        noise = torch.rand(len(rows), 3, generator=at.generator)
        loss = self.network(DATA[rows] + noise).square().mean()
        descend(self.optimizer, loss)
        return {"loss": loss, "weight": float(self.network[0].weight.detach().norm())}

    def fit(self, schedule, out=None, rows=ROWS, **options):
        step = self.step if rows is not None else (lambda rows, at: self.step(ROWS[:4], at))
        return fit(
            *(self.network, [self.optimizer], step, schedule, rows, out, 0),
            progress=False,
            **options,
        )


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(v, second[k]) for k, v in first.items()
    )


def log_of(folder):
    with (folder / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- learning rates ----------------------------------------------------------------------------


def lrs(**fields):
    """Return the learning rates of every step, four steps in an epoch."""
    line = Line(lr=0.5)
    line.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.1})
    line.fit(Schedule(batch_size=2, **fields))
    last = line.optimizer.param_groups
    assert last[1]["lr"] == pytest.approx(0.1 * last[0]["lr"])
    return line.lrs


def test_the_learning_rate_warms_up_and_falls_along_half_a_cosine_to_a_hundredth():
    rates = lrs(epochs=5, schedule="cosine", warmup=0.1)
    assert rates[:3] == pytest.approx([0.0, 0.25, 0.5])
    middle = 2 + 9  # halfway between the end of the warm-up and the end
    assert rates[middle] == pytest.approx(0.5 * 0.505)
    assert Schedule(schedule="cosine").lr_factor(1 - 1e-9, 0) == pytest.approx(0.01)
    assert lrs(epochs=1, schedule="cosine", warmup=0.0)[0] == 0.5


def test_a_cosine_with_warm_restarts_repeats_itself():
    once = lrs(epochs=3, schedule="cosine", warmup=0.25)
    assert lrs(epochs=6, schedule="cosine", warmup=0.25, cycles=2) == pytest.approx(once * 2)
    assert once[-1] < once[3]


def test_the_other_schedules():
    assert lrs(epochs=2) == [0.5] * 8
    assert lrs(epochs=2, schedule="linear", warmup=0.0)[::4] == pytest.approx([0.5, 0.25])
    steps = lrs(epochs=5, schedule="step", gamma=0.7, step_epochs=2)
    assert steps == pytest.approx([0.5] * 8 + [0.35] * 8 + [0.245] * 4)


# --- EMA, best epoch, crop sides -----------------------------------------------------------------


def test_the_average_is_exponential_with_a_decay_that_warms_up():
    line = Line()
    expected = {k: v.double() for k, v in line.network.state_dict().items()}
    plain = line.step

    def step(rows, at):
        losses = plain(rows, at)
        decay = min(0.5, (2 + at.step) / (11 + at.step))
        for key, value in line.network.state_dict().items():
            counts = key.endswith("num_batches_tracked")
            expected[key] = value if counts else decay * expected[key] + (1 - decay) * value
        return losses

    line.step = step
    state = line.fit(Schedule(epochs=5, batch_size=4, average=0.5)).state
    for key, value in state.items():
        torch.testing.assert_close(value.double(), expected[key].double(), msg=key)


def test_without_an_average_the_result_is_the_last_weights():
    line = Line()
    result = line.fit(Schedule(epochs=2, batch_size=4))
    assert same(result.state, line.network.state_dict())


def test_the_best_epoch_at_the_last_crop_side_is_the_result(tmp_path):
    line, scores, states = Line(), iter([0.9, 0.5, 0.7, 0.6]), []

    def validate(network, at):
        assert not network.training
        assert not torch.is_grad_enabled()
        states.append({k: v.clone() for k, v in network.state_dict().items()})
        return {"score": next(scores), "side": at.size}

    schedule = Schedule(epochs=4, batch_size=4, average=0.9, sizes=((0, 8), (1, 16)))
    result = line.fit(schedule, tmp_path, validate=validate, select="score")
    assert [at.size for at in line.places] == [8, 8] + [16] * 6
    assert same(result.state, states[2])
    assert [row["size"] for row in log_of(tmp_path)] == ["8", "16", "16", "16"]
    assert [row["score"] for row in result.rows] == [0.9, 0.5, 0.7, 0.6]
    assert line.network.training


def test_a_schedule_that_never_reaches_its_last_side_is_an_error():
    with pytest.raises(ValueError, match="never comes in 2 epochs"):
        Line().fit(Schedule(epochs=2, batch_size=2, sizes=((0, 8), (2, 16))))


def test_fewer_rows_than_a_batch_are_an_error():
    with pytest.raises(ValueError, match="8 rows"):
        Line().fit(Schedule(epochs=2, batch_size=9))


def test_a_loss_that_is_not_finite_stops_training_before_it_is_saved(tmp_path):
    line = Line()
    plain = line.step
    line.step = lambda rows, at: plain(rows, at) | ({"loss": float("nan")} if at.step == 3 else {})
    with pytest.raises(ValueError, match=r"loss is nan at step 4 of 12: .*lower learning rate"):
        line.fit(Schedule(epochs=6, batch_size=4), tmp_path, save_every=0.0)
    assert torch.load(tmp_path / "state.pt", weights_only=True)["done"] == 3


# --- position, log and resume --------------------------------------------------------------------


def test_every_step_has_its_own_random_numbers_and_every_epoch_its_own_order():
    line = Line()
    line.fit(Schedule(epochs=3, batch_size=4))
    drawn = {tuple(torch.rand(2, generator=at.generator).tolist()) for at in line.places}
    assert len(drawn) == 6
    assert [(at.step, at.epoch, at.batch) for at in line.places] == [
        *((0, 0, 0), (1, 0, 1), (2, 1, 0)),
        *((3, 1, 1), (4, 2, 0), (5, 2, 1)),
    ]
    assert [at.progress for at in line.places] == pytest.approx([n / 6 for n in range(6)])


def test_a_stage_that_counts_steps_logs_means_of_many_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 3)
    line = Line()
    result = line.fit(Schedule(steps=7, batch_size=4), tmp_path)
    assert [row["step"] for row in log_of(tmp_path)] == ["3", "6", "7"]
    assert [at.epoch for at in line.places] == [0, 0, 1, 1, 2, 2, 3]
    assert result.rows[2]["weight"] == pytest.approx(float(line.network[0].weight.detach().norm()))


SCHEDULES = {
    "epochs": Schedule(epochs=3, batch_size=2, average=0.9, schedule="cosine"),
    "steps": Schedule(steps=10, batch_size=4, average=0.5),
    "own rows": Schedule(steps=10, schedule="linear"),
}


@pytest.mark.parametrize("kind", SCHEDULES)
def test_an_interrupted_stage_ends_at_the_same_weights_and_log(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(loop, "LOG_EVERY", 4)

    def run(out, stop=None):
        line = Line(stop=stop)
        seen = {"validated": 0, "other": nn.Linear(1, 1)}

        def validate(network, at):
            seen["other"].weight.data += at.step
            return {"score": -float(network[0].weight.abs().sum())}

        select = "score" if kind == "epochs" else None
        options = {"validate": validate, "select": select, "others": {"other": seen["other"]}}
        rows = None if kind == "own rows" else ROWS
        result = line.fit(SCHEDULES[kind], out, rows, save_every=0.0, **options)
        return result.state, seen["other"].state_dict()

    whole = run(tmp_path / "whole")
    for stop in (1, 3, 4, 2):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "parts", stop)
    parts = run(tmp_path / "parts")
    assert same(whole[0], parts[0])
    assert same(whole[1], parts[1])
    logs = [(tmp_path / name / "log.csv").read_text() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert same(run(tmp_path / "parts", stop=1)[0], whole[0])  # a finished stage takes no step


def test_a_longer_schedule_resumes_a_finished_stage(tmp_path):
    whole = Line().fit(Schedule(steps=9, batch_size=4), tmp_path / "whole")
    early = Line().fit(Schedule(steps=4, batch_size=4), tmp_path / "parts")
    late = Line().fit(Schedule(steps=9, batch_size=4), tmp_path / "parts")
    assert not same(early.state, late.state)
    assert same(whole.state, late.state)


def test_an_interrupted_validation_is_repeated(tmp_path):
    def run(out, broken):
        def validate(_, at):
            if broken and at.epoch == 1:
                raise KeyboardInterrupt
            return {"score": 1.0}

        return Line().fit(Schedule(epochs=2, batch_size=2), out, validate=validate, save_every=0.0)

    whole = run(tmp_path / "whole", False)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", True)
    assert same(run(tmp_path / "parts", False).state, whole.state)
    assert len(log_of(tmp_path / "parts")) == 2


# --- processes -----------------------------------------------------------------------------------

SHARED = """
import sys, torch
from pathlib import Path
from facezoo.training.loop import Schedule, fit
from facezoo.training.optim import descend
from facezoo.training.processes import Processes
torch.manual_seed(0)
normed = sys.argv[3] == "normed"
norm = torch.nn.BatchNorm1d(2) if normed else torch.nn.Identity()
part = torch.nn.Sequential(norm, torch.nn.Linear(2, 1))
data = torch.arange(16.0).view(8, 2) ** 2 / 16
optimizer, seen = torch.optim.Adam(part.parameters(), lr=0.05), []
def step(rows, at):
    seen.append(rows.tolist())
    if len(seen) > int(sys.argv[2]):
        raise SystemExit
    if normed:
        part(data[rows])
        part.eval()  # running statistics enter the gradient
    loss = part(data[rows]).square().mean()
    part.train()
    descend(optimizer, loss)
    return {"loss": loss}
schedule, out = Schedule(epochs=2, batch_size=4, average=0.9), Path(sys.argv[1])
state, _ = fit(part, [optimizer], step, schedule, torch.arange(8), out, 0, save_every=0)
torch.save([state, seen], f"{sys.argv[1]}/rank{Processes.present().rank}.pt")
"""


@pytest.fixture
def script(tmp_path):
    pytest.importorskip("accelerate")
    path = tmp_path / "shared.py"
    path.write_text(SHARED)
    return path


def run_two(script, out, stop, kind):
    out.mkdir(exist_ok=True)
    done = launch(script, out, stop, kind)
    assert done.returncode == 0, done.stderr


def saved(out, rank):
    return torch.load(out / f"rank{rank}.pt", weights_only=True)


def test_processes_that_share_a_stage_end_at_the_weights_of_one(script, tmp_path):
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    subprocess.run([sys.executable, script, alone, "99", "plain"], check=True)
    run_two(script, both, 99, "plain")
    one, seen = saved(alone, 0)
    first, second = (saved(both, rank) for rank in (0, 1))
    assert same(first[0], second[0])
    for key, value in one.items():
        torch.testing.assert_close(first[0][key], value)
    for whole, half, other in zip(seen, first[1], second[1], strict=True):
        assert sorted(half + other) == sorted(whole)
        assert len(half) == len(other) == 2


@pytest.mark.slow
def test_processes_that_are_interrupted_end_at_the_same_weights(script, tmp_path):
    run_two(script, tmp_path / "whole", 99, "normed")
    run_two(script, tmp_path / "parts", 1, "normed")
    run_two(script, tmp_path / "parts", 99, "normed")
    assert same(saved(tmp_path / "whole", 0)[0], saved(tmp_path / "parts", 0)[0])
    assert same(saved(tmp_path / "whole", 0)[0], saved(tmp_path / "whole", 1)[0])
