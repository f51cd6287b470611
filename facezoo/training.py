"""What every training loop needs: exact resume, a log, an average of the weights, a schedule."""

from __future__ import annotations

import atexit
import csv
import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from facezoo.card import Card, Hub, Licenses, Preprocessing, Training, Weights
from facezoo.errors import UnknownNameError, differences
from facezoo.version import __version__
from facezoo.weights import save, sha256_of

Recipe = TypeVar("Recipe")

REHEARSED = "Rehearsed with --smoke on few steps: these weights have learnt nothing."
"""What the card of a rehearsal says."""


def recipe_named(recipes: Mapping[str, Recipe], name: str) -> Recipe:
    """A recipe by name.

    Raises:
        UnknownNameError: if there is no such recipe; the message lists near matches.
    """
    if name not in recipes:
        near = get_close_matches(name, recipes) or sorted(recipes)
        raise UnknownNameError(f"no recipe named {name!r}; did you mean {' or '.join(near)}?")
    return recipes[name]


def shortened(recipe: Recipe, **values: Any) -> Recipe:
    """A recipe with some of its fields set, at any depth; to rehearse it in a few steps.

    Args:
        recipe: a dataclass, which may hold others.
        values: of fields by name, such as ``epochs=1``.

    Returns:
        A copy in which every field of these names has that value.
    """
    changed: dict[str, Any] = {}
    for entry in fields(recipe):  # type: ignore[arg-type]
        value = getattr(recipe, entry.name)
        if entry.name in values:
            changed[entry.name] = values[entry.name]
        elif is_dataclass(value):
            changed[entry.name] = shortened(value, **values)
    return replace(recipe, **changed)  # type: ignore[type-var]


def generator(seed: int, *path: int) -> torch.Generator:
    """A random generator for one place in a run, such as (epoch, step).

    Every step has its own, so a resumed run draws what the uninterrupted one would have drawn.
    """
    value = seed
    for part in path:
        value = (value * 1_000_003 + part + 1) % (2**63)
    return torch.Generator().manual_seed(value)


def batches(count: int, size: int, seed: int, epoch: int) -> list[Tensor]:
    """Shuffled row indices of one epoch in batches of ``size``; the short last one is dropped.

    Raises:
        ValueError: if there are too few rows for one batch.
    """
    if count < size:
        raise ValueError(f"there are {count} rows to train on, too few for a batch of {size}")
    order = torch.randperm(count, generator=generator(seed, epoch))
    return list(order[: count // size * size].split(size))


def autocast(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on the devices that have it."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type != "mps")


def set_cosine_rate(
    optimizer: torch.optim.Optimizer, peak: float, progress: float, warmup: float
) -> None:
    """Linear warm-up, then half a cosine down to one per cent of ``peak``.

    Args:
        optimizer: its groups may carry ``"rate_scale"``, a factor on ``peak``.
        peak: learning rate at the end of the warm-up.
        progress: share of the run that is done, in [0, 1].
        warmup: share of the run that is warm-up.
    """
    if progress < warmup:
        factor = progress / warmup
    else:
        factor = 0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup)))
    set_rate(optimizer, peak * factor)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group, times the group's ``"rate_scale"`` if it has one."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_scale", 1.0)


@dataclass(frozen=True)
class Processes:
    """The processes that work together: in training, each on its share of every batch.

    They are what ``accelerate launch`` (or torchrun) starts; without it there is one.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def present(cls) -> Processes:
        """Those of this run.

        Raises:
            ImportError: if there are several and accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        state = _partial_state()
        return cls(state.process_index, state.num_processes)

    @property
    def first(self) -> bool:
        """Whether this process is the one that validates and writes."""
        return self.rank == 0

    @property
    def path(self) -> tuple[int, ...]:
        """What tells this process's random numbers from the first one's."""
        return (self.rank,) if self.rank else ()

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch's row numbers.

        Raises:
            ValueError: if the batch cannot be shared evenly, which would weigh rows unevenly.
        """
        if len(batch) % self.count:
            raise ValueError(
                f"a batch of {len(batch)} cannot be shared by {self.count} processes; start a "
                "number of processes that divides it"
            )
        return batch[self.rank :: self.count]

    def wait(self) -> None:
        """Go on when every process is here."""
        if self.count > 1:
            _partial_state().wait_for_everyone()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process is through the block when the others enter it."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank; each process gets them when all have come here."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values

    def device(self) -> torch.device | None:
        """Where this process works; None, for the best there is, if it is alone."""
        if self.count == 1:
            return None
        device: torch.device = _partial_state().device
        return device

    def same_buffers(self, module: nn.Module) -> None:
        """Give every process the buffers of the first one, such as the statistics of norms."""
        if self.count > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)

    def mean_gradients(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace every gradient by its mean over the processes."""
        if self.count == 1:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= self.count


def _partial_state() -> Any:
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ImportError(
            "several processes need accelerate: pip install 'facezoo[train]'"
        ) from error
    begun = torch.distributed.is_initialized()
    # One process may write for long while the others wait; the launcher ends those left behind.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
    if not begun and torch.distributed.is_initialized():
        atexit.register(_leave_group)
    return state


def _leave_group() -> None:
    """End what the processes speak by: its threads, outliving the interpreter, would abort it."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One step of an optimiser down the gradient of a loss, over all processes' shares."""
    optimizer.zero_grad()
    loss.backward()
    Processes.present().mean_gradients(optimizer)
    optimizer.step()


class WeightAverage:
    """Exponential moving average of a module's floating-point state, buffers included.

    The decay warms up as (1 + n) / (10 + n), so that short runs are not dominated by the start.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the average towards the module's present state."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[key].lerp_(value, 1 - decay)
            else:
                self.state[key].copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {"updates": self.updates, "state": self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a saved state."""
        self.updates = saved["updates"]
        for key, value in saved["state"].items():
            self.state[key].copy_(value)


def save_state(path: Path, **state: Any) -> None:
    """Write the state of a run so that an interruption leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The state that ``save_state`` wrote, or None if there is none."""
    return torch.load(path, weights_only=True, map_location="cpu") if path.is_file() else None


def log_row(path: Path, row: dict[str, Any]) -> None:
    """Append a row to a CSV file, with a header if the file is new.

    The first column is the row's place in the run. Rows from this place on are those of a run that
    was interrupted after it wrote them and before it saved its state; they go.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = not path.exists() or not path.stat().st_size
    if not fresh:
        with path.open(newline="") as file:
            header, *lines = file.readlines()
        place = next(iter(row.values()))
        before = [line for line in lines if float(line.partition(",")[0]) < place]
        if len(before) < len(lines):
            with path.open("w", newline="") as file:
                file.writelines([header, *before])
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(row))
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def decayed_and_not(module: nn.Module) -> Iterator[dict[str, Any]]:
    """Parameter groups for an optimiser: weight decay on matrices only, not on norms and biases."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    yield {"params": [p for p in parameters if p.ndim > 1]}
    yield {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}


def layer_groups(module: nn.Module, decay: float) -> list[dict[str, Any]]:
    """Parameter groups whose learning rate falls with the distance from the output.

    Every timm backbone in the module counts its own layers, the last of which is trained at
    ``decay`` times the full rate, the one before at ``decay**2`` times, and so on; what is outside
    of backbones is trained at the full rate. Norms and biases are not decayed.

    Source: Clark et al., "ELECTRA" (2020), Sec. 3.1, layer-wise learning rates.

    Args:
        module: of which parameters without gradients are left out.
        decay: factor per layer, in (0, 1]; 1 gives every layer the full rate.

    Returns:
        Groups for an optimiser, with ``"rate_scale"`` for ``set_cosine_rate`` and ``set_rate``.

    Raises:
        ValueError: if ``decay`` is outside of (0, 1].
    """
    if not 0 < decay <= 1:
        raise ValueError(f"layer decay must be above 0 and at most 1, got {decay}")
    depths = _distances(module)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            key = depths.get(name, 0), parameter.ndim > 1
            groups.setdefault(key, []).append(parameter)
    return [
        {"params": parameters, "rate_scale": decay**depth}
        | ({} if is_matrix else {"weight_decay": 0.0})
        for (depth, is_matrix), parameters in groups.items()
    ]


def _distances(module: nn.Module) -> dict[str, int]:
    """How many layers before the end of its timm backbone a parameter is, from 1; by name."""
    from timm.models import group_parameters

    depths: dict[str, int] = {}
    for prefix, part in module.named_modules():
        if hasattr(part, "group_matcher"):
            layers = group_parameters(part, part.group_matcher(coarse=False), reverse=True)
            last = max(layers.values(), default=0)
            start = f"{prefix}." if prefix else ""
            depths |= {f"{start}{name}": last + 1 - layer for name, layer in layers.items()}
    return depths


def begin_run(out: Path, *, seed: int, recipe: dict[str, Any]) -> dict[str, Any]:
    """Record where a run came from, or read the record of the run that is being resumed.

    Raises:
        ValueError: if the folder holds a run of another recipe or seed.
    """
    record = out / "run.json"
    wanted = json.loads(json.dumps({"seed": seed, "recipe": recipe}))
    if record.is_file():
        run: dict[str, Any] = json.loads(record.read_text())
        before, now = (dict(_flat({key: said[key] for key in wanted})) for said in (run, wanted))
        if shown := differences(before, now):
            raise ValueError(
                f"{out} holds a run of another recipe or seed ({shown}; see {record}); give "
                "another --out, or remove that folder to begin anew"
            )
        return run
    run = {**wanted, "commit": _commit(), "hardware": _hardware()}
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(run, indent=2) + "\n")
    return run


def check_data(out: Path, data: Mapping[str, Any], *parts: Path) -> None:
    """Record what a run is trained on, or refuse other data than those it was begun with.

    Args:
        out: folder of the run, which ``begin_run`` has begun.
        data: what tells these data from others, see ``digest_of_files``.
        parts: folders of runs that came before, whose data must be the same.

    Raises:
        ValueError: if the data are others; the message says in what.
    """
    for folder in (*parts, out):
        record = folder / "run.json"
        run: dict[str, Any] = json.loads(record.read_text())
        if "data" in run:
            said = ({f"data.{key}": value for key, value in d.items()} for d in (run["data"], data))
            if shown := differences(*said):
                raise ValueError(
                    f"{folder} was begun with other data ({shown}; see {record}); give the same "
                    "again (--data, and --start if there is one), or another --out to begin anew"
                )
        elif folder == out:
            record.write_text(json.dumps({**run, "data": data}, indent=2) + "\n")


def digest_of_files(root: Path, files: Sequence[Path]) -> dict[str, Any]:
    """What tells files from others: how many, and a hash of names below ``root`` and contents."""
    digest = hashlib.sha256()
    for file in tqdm(files, desc="checking data", unit="file", delay=5):
        line = f"{file.relative_to(root).as_posix()} {sha256_of(file)}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return {"files": len(files), "sha256": digest.hexdigest()[:12]}


def _flat(said: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of nested dicts, by the keys that lead to them."""
    for key, value in said.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", entry) for inner, entry in _flat(value))
        else:
            yield key, value


def write_checkpoint(
    module: nn.Module,
    out: Path,
    run: dict[str, Any],
    *,
    model: str,
    tag: str,
    default: bool = True,
    flags: str = "",
    stages: tuple[str, ...] = ("",),
    parts: tuple[str, ...] = (),
    architecture: dict[str, Any],
    preprocessing: Preprocessing | None,
    labels: tuple[str, ...],
    precision: str,
    licenses: Licenses,
    data: tuple[str, ...],
    intended_use: str,
    citation: str,
    base: Card | None = None,
    smoke: bool = False,
) -> Path:
    """Write weights and card of a finished run; ``facezoo evaluate --card`` adds the metrics.

    The card's command is one ``facezoo train`` for every stage, in order: of ``model`` with the
    stage's own flags, or of the ``parts`` where these are commands of their own. Of ``base``, the
    checkpoint that training started from, it has the name and, before ``data``, the data. A
    rehearsal, ``smoke``, says that it is one.

    Returns:
        The card's path, ``out/<model>.<tag>.json``.
    """
    weights = save(module, out / f"{model}.{tag}.safetensors", precision)
    count = sum(parameter.numel() for parameter in module.parameters())
    size, digest = weights.stat().st_size, sha256_of(weights)
    runs = [(part, "") for part in parts] or [(model, stage) for stage in stages]
    command = " && ".join(
        f"facezoo train {part} --data DATA --out runs/{model}{flags}{stage} --seed {run['seed']}"
        + " --smoke" * smoke
        for part, stage in runs
    )
    training = Training(
        data=(*(base.training.data if base else ()), *data),
        command=command,
        commit=run["commit"],
        recipe=run["recipe"],
        seed=run["seed"],
        hardware=run["hardware"],
        base=base.name if base else None,
    )
    card = Card(
        model=model,
        tag=tag,
        default=default,
        architecture=architecture,
        preprocessing=preprocessing,
        labels=labels,
        weights=Weights(weights.name, digest, size, precision, count),
        hub=Hub(repo=f"facezoo/{model}.{tag}"),
        licenses=licenses,
        training=training,
        metrics=(),
        limits=(REHEARSED,) * smoke,
        intended_use=intended_use,
        citation=citation,
    )
    path = out / f"{model}.{tag}.json"
    path.write_text(card.to_json(), encoding="utf-8")
    return path


def _commit() -> str:
    """The commit of this checkout, or the version where there is none."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(
            [*git, "status", "--porcelain", "."], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return f"version {__version__}"
    return head.stdout.strip() + (" with changes" if changes.stdout.strip() else "")


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{torch.get_num_threads()} CPU threads, {platform.machine()}, bfloat16 autocast"
