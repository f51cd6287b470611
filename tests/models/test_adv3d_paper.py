from dataclasses import replace
from functools import partial

import pytest
import torch
from ict_pack import write_ict
from interrupting import interrupted
from mesh_trees import write_bu3dfe, write_coma, write_facescape

from facezoo.hub.card import Card
from facezoo.hub.tensors import load_into, read_tensors
from facezoo.models.adv3d import Adv3D
from facezoo.models.adv3d.networks import VAE, IdentityDiscriminator
from facezoo.models.adv3d.train import command
from facezoo.models.adv3d.train import paper as training
from facezoo.models.adv3d.train.command import run
from facezoo.models.adv3d.train.paper import PairSampler
from facezoo.models.adv3d.train.recipes import RECIPES as ALL
from facezoo.models.adv3d.train.recipes import PaperConfig
from facezoo.training.loop import Position
from facezoo.training.state import generator

CPU = torch.device("cpu")
RECIPES = {name: recipe for name, recipe in ALL.items() if isinstance(recipe, PaperConfig)}
WRITERS = {
    "ict": write_ict,
    "facescape": write_facescape,
    "bu-3dfe": write_bu3dfe,
    "coma": write_coma,
}


def small(name, **changes):
    recipe = RECIPES[name]
    size = {"simplify_to": None, "size": "tiny", "identity_dim": 3, "expression_dim": 2}
    length = {"epochs": 2, "batch_size": 12, "pretraining_batch_size": 12}
    pretraining = min(recipe.pretraining_epochs, 1)
    return replace(recipe, **(size | length | {"pretraining_epochs": pretraining} | changes))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}

    def folder(source):
        if source not in made:
            made[source] = WRITERS[source](tmp_path_factory.mktemp(source))
        return made[source]

    return folder


@pytest.fixture(scope="module")
def meshes(folders):
    return command.read_meshes(small("ict-paper"), folders("ict"))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_leaves_weights_and_a_card_that_load(name, folders, tmp_path, monkeypatch):
    config = small(name)
    if config.source == "coma":
        pytest.importorskip("trimesh")
    monkeypatch.setattr(command, "recipe", lambda _: config)
    path = run(name, folders(config.source), tmp_path, seed=0, device=CPU)
    card = Card.load(path)
    assert card.name == f"adv3d.{name}"
    assert card.preprocessing is None
    model = Adv3D(**card.architecture).eval()
    load_into(model, read_tensors(tmp_path / card.weights.file))
    test = command.read_meshes(config, folders(config.source), "test")
    with pytest.warns(UserWarning, match="the codes describe it poorly"):  # after so few steps
        assert model.encode_identity(test.vertices[:2], units="mm").shape == (2, 3)
    written = (tmp_path / "joint" / "log.csv").read_text().splitlines()
    assert len(written) == 1 + config.epochs
    terms = set(written[0].split(","))
    assert ("neutral_truth" in terms) == name.removesuffix("-no-discriminator").endswith("neutral")
    assert ("expression_truth" in terms) == name.startswith("bu-3dfe-neutral")
    assert ("laplacian" in terms) == ("neutral" not in name or name.startswith("bu"))
    assert ("discriminator" in terms) == (not name.endswith("no-discriminator"))


@pytest.mark.parametrize("source", ["ict", "bu-3dfe"])
def test_a_run_with_other_meshes_does_not_resume(source, folders, tmp_path, monkeypatch):
    name = {"ict": "ict-paper"}.get(source, source)
    monkeypatch.setattr(command, "recipe", lambda _: small(name))

    again = partial(run, name, out=tmp_path / "out", seed=0, device=CPU)
    with interrupted(monkeypatch, "train", command.paper):
        again(folders(source))
    meshes = command.read_meshes(small(name), folders(source))
    other = replace(meshes, vertices=meshes.vertices + 1)
    with monkeypatch.context() as patch:
        patch.setattr(command, "read_meshes", lambda *_, **__: other)
        with pytest.raises(ValueError, match=r"begun with other data .*sha256 was"):
            again(folders(source))
    with interrupted(monkeypatch, "train", command.paper):
        again(folders(source))


def test_a_recipe_that_is_not_there_raises_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(ValueError, match="no recipe named 'coma-neutral'; did you mean"):
        run("coma-neutral", tmp_path, tmp_path / "out", seed=0, device=CPU)
    assert not (tmp_path / "out").exists()


class InterruptError(Exception):
    pass


SHORT = small("ict-paper-neutral", batch_size=6, pretraining_batch_size=6)


@pytest.fixture(scope="module")
def few(meshes):
    """Six persons: four steps an epoch."""
    return replace(meshes, vertices=meshes.vertices[:24], identities=meshes.identities[:24])


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    return training.train(SHORT, few, out, seed=3, device=CPU), out


@pytest.mark.parametrize("at", [3, 5, 8, 15])
def test_an_interrupted_run_ends_at_the_same_weights(at, few, whole, tmp_path, monkeypatch):
    """In the pre-training, at the first joint step, between its two halves, in the second epoch."""
    config, descend, calls = SHORT, training.descend, []

    def interrupted(optimizer, loss):
        calls.append(1)
        if len(calls) == at:
            raise InterruptError
        descend(optimizer, loss)

    arguments = {"seed": 3, "device": CPU, "save_every": 0.0}
    monkeypatch.setattr(training, "descend", interrupted)
    with pytest.raises(InterruptError):
        training.train(config, few, tmp_path, **arguments)
    resumed = training.train(config, few, tmp_path, **arguments)
    assert len(calls) == 4 + 2 * 4 * 2 + (2 if at == 8 else 1)
    for name, tensor in whole[0].state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    for log in ("pretraining/log.csv", "joint/log.csv"):
        assert (tmp_path / log).read_text() == (whole[1] / log).read_text()


def joint_of(meshes, name="ict-paper"):
    config = small(name)
    vae, judge = VAE(144, 3, 2), IdentityDiscriminator()
    return training.Joint(config, vae, judge, meshes, CPU)


def position():
    return Position(0, 0, 0, 0.0, 0, generator(0))


def copies(module):
    return {name: value.clone() for name, value in module.named_parameters()}


def moved(module, before):
    return {n for n, value in module.named_parameters() if not torch.equal(value, before[n])}


def test_each_step_moves_its_own_network_only(meshes, monkeypatch):
    joint = joint_of(meshes)
    optimizers = {
        "vae": torch.optim.Adam(joint.vae.parameters()),
        "judge": torch.optim.Adam(joint.judge.parameters()),
    }
    before = {"vae": copies(joint.vae), "judge": copies(joint.judge)}
    seen = []
    descend = training.descend

    def watched(optimizer, loss):
        descend(optimizer, loss)
        seen.append({n: moved(getattr(joint, n), before[n]) for n in before})
        before.update(vae=copies(joint.vae), judge=copies(joint.judge))

    monkeypatch.setattr(training, "descend", watched)
    joint.step(optimizers["vae"], optimizers["judge"], torch.arange(6), position())
    norms = {n for n, _ in joint.judge.named_parameters() if ".bn" in n or n.startswith("bn")}
    assert not seen[0]["vae"]
    assert seen[0]["judge"] == before["judge"].keys() - norms
    assert not seen[1]["judge"]
    assert seen[1]["vae"] == before["vae"].keys()


def reached(joint, loss):
    joint.vae.zero_grad()
    joint.judge.zero_grad()
    loss.backward(retain_graph=True)
    parts = {"vae": joint.vae, "judge": joint.judge}
    return {
        f"{part}.{name}"
        for part, network in parts.items()
        for name, value in network.named_parameters()
        if value.grad is not None and bool(value.grad.abs().sum() > 0)
    }


def test_every_loss_reaches_the_layers_it_is_for(meshes):
    joint = joint_of(meshes, "bu-3dfe-neutral")
    draw = generator(0)
    batch = joint.batch(torch.arange(6), draw)
    face = joint.forward(batch.mesh, draw)
    decoders = {n: f"vae.fc2_{n}.weight" for n in ("id", "exp")}
    losses = joint.losses(batch, face, draw)
    assert losses.keys() == joint.weights(0).keys()
    for name, loss in losses.items():
        names = reached(joint, loss)
        assert not any(n.startswith("judge") for n in names), name
        assert "vae.conv1.weight" in names, name
        if name != "kl":
            assert (decoders["id"] in names) == (name != "expression_truth"), name
            assert (decoders["exp"] in names) == (name in ("reconstruction", "expression_truth"))
    names = reached(joint, joint.discriminator_loss(batch, face))
    assert all(n.startswith("judge") for n in names)
    assert "judge.feature_network.stn.conv1.weight" in names


def test_the_neutral_of_a_batch_is_that_of_its_identities(meshes):
    joint = joint_of(meshes, "ict-paper-neutral")
    rows = torch.tensor([0, 5, 23, 40, 41, 55])
    batch = joint.batch(rows, generator(0))
    scale = joint.config.scale
    torch.testing.assert_close(batch.mesh * scale, meshes.vertices[rows])
    torch.testing.assert_close(batch.neutral * scale, meshes.vertices[rows // 4 * 4])


def test_rates_fall_and_kl_fades_as_in_the_recipe(meshes):
    assert joint_of(meshes, "coma").weights(35)["kl"] == pytest.approx(0.9 * 5e-7)
    weights = joint_of(meshes, "bu-3dfe-neutral").weights(200)
    assert weights["kl"] == 3e-5
    assert weights["neutral_truth"] == weights["expression_truth"] == 125


def test_rates_fall_by_three_tenths_every_fifty_epochs(meshes, tmp_path, monkeypatch):
    rates = []

    def watched(self, optimizer, judge_optimizer, rows, at):
        groups = [o.param_groups[0] for o in (optimizer, judge_optimizer)]
        rates.append([group["lr"] for group in groups])
        assert [group["weight_decay"] for group in groups] == [1e-4, 0]
        return {}

    monkeypatch.setattr(training.Joint, "step", watched)
    config = small("ict-paper", pretraining_epochs=0, batch_size=56, epochs=101)
    training.train(config, meshes, tmp_path, seed=0, device=CPU)
    for epoch, wanted in ((0, 1e-4), (49, 1e-4), (50, 7e-5), (100, 4.9e-5)):
        assert rates[epoch] == pytest.approx([wanted, wanted])


def test_partners_are_drawn_evenly_and_never_the_mesh_itself():
    persons = torch.tensor([0, 1, 0, 2, 1, 0, 2, 2, 2])
    sampler = PairSampler(persons)
    rows = torch.tensor([2]).repeat(4000)
    for same, wanted in ((True, [0, 5]), (False, [1, 3, 4, 6, 7, 8])):
        drawn = sampler.sample(rows, torch.full((4000,), same), generator(1))
        counts = drawn.bincount(minlength=9)
        assert counts.nonzero().flatten().tolist() == wanted
        assert float(counts[wanted].min()) > 0.8 * 4000 / len(wanted)
    rows = torch.arange(9).repeat(50)
    same = torch.rand(450) < 0.5
    drawn = sampler.sample(rows, same, generator(2))
    assert torch.equal(persons[drawn] == persons[rows], same)
    assert not bool((drawn == rows).any())


@pytest.mark.parametrize("persons", [[0, 0, 0], [0, 0, 1]])
def test_pairs_need_two_identities_with_two_meshes(persons):
    with pytest.raises(
        ValueError, match="pairs need two or more identities with two or more meshes each"
    ):
        PairSampler(torch.tensor(persons))


def test_the_discriminator_learns_to_distinguish_pairs(meshes, tmp_path):
    """Persons that lie far apart, so that a few steps do."""
    people = meshes.identities % 2
    offsets = torch.tensor([-200.0, 200.0])[people][:, None, None]
    far = replace(meshes, vertices=meshes.vertices + offsets, identities=people)
    config = small("ict-paper", pretraining_epochs=15, lr=1e-3)
    training.pretrain(config, far, tmp_path, seed=0, device=CPU)
    rows = (tmp_path / "pretraining" / "log.csv").read_text().splitlines()
    assert float(rows[-1].split(",")[2]) > 0.9
    assert float(rows[-1].split(",")[1]) < 0.5 * float(rows[1].split(",")[1])


def test_the_joint_training_starts_from_the_pretrained_discriminator(meshes, tmp_path, monkeypatch):
    started = []

    def watched(self, optimizer, judge_optimizer, rows, at):
        started.append(({n: v.clone() for n, v in self.judge.state_dict().items()}, self.judge))
        return {}

    monkeypatch.setattr(training.Joint, "step", watched)
    config = small("ict-paper", epochs=1)
    training.train(config, meshes, tmp_path, seed=0, device=CPU)
    trained = training.pretrain(config, meshes, tmp_path, seed=0, device=CPU)
    assert all(torch.equal(v, started[0][0][n]) for n, v in trained.state_dict().items())
    norms = [module.use_norm for module in started[0][1].modules() if hasattr(module, "use_norm")]
    assert norms == [False] * 3


def test_training_reconstructs_better_and_better(few, tmp_path):
    recipe = "ict-paper-neutral-no-discriminator"
    config = small(recipe, epochs=15, lr=2e-3, expression_dim=4)
    training.train(config, few, tmp_path, seed=0, device=CPU)
    rows = [line.split(",") for line in (tmp_path / "joint" / "log.csv").read_text().splitlines()]
    for term in ("reconstruction", "neutral_truth"):
        column = rows[0].index(term)
        assert float(rows[-1][column]) < 0.5 * float(rows[1][column])
