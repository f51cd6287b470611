"""Algorithm 1: which parameters move in which step, and what each part of the objective asks."""

from dataclasses import replace

import pytest
import torch
from ipd_fer_tiny import BACKBONE, COMPACT, CPU, PAPER, differing, shaken

from facezoo.models.ipd_fer.networks import Encoder
from facezoo.models.ipd_fer.train import algorithm
from facezoo.models.ipd_fer.train.algorithm import Batch, Disentangler
from facezoo.models.ipd_fer.train.recipes import RECIPES, Stage, recipe

CONFIG = Stage(1, weight_decay=0.0, lr=0.01)
ENCODERS = {"expression_encoder", "pose_encoder"}
CLASSIFIERS = {"expression_classifier", "pose_classifier"}
OURS = {"expression_classifier"}  # a pose bottleneck has no classifier


def batch_of(count=6):
    draw = torch.Generator().manual_seed(0)
    poses = torch.randn(count, 4, generator=draw)
    poses[0] = float("nan")
    return Batch(
        images=torch.rand(count, 3, 32, 32, generator=draw) * 2 - 1,
        targets=torch.rand(count, 8, generator=draw).softmax(1),
        trust=torch.ones(count),
        is_neutral=torch.arange(count) % 2 == 0,
        pose_classes=torch.arange(count) % 6 - 1,
        poses=poses,
    )


def built(tiny, **changes):
    torch.manual_seed(0)
    encoder = Encoder(BACKBONE, tiny.feature_dim).state_dict()
    start = {f"expression_encoder.{k}": v for k, v in encoder.items()}
    identity = {f"identity_encoder.{k}": v for k, v in encoder.items()}
    crops = torch.randint(0, 256, (9, 1, 128, 128), dtype=torch.uint8)
    chosen = replace(tiny, objective=replace(tiny.objective, **changes))
    whole = Disentangler(chosen, identity, start, crops, CPU)
    whole.parts.train()
    return whole


def updates(whole, monkeypatch):
    """Names of the parameters that each step of one batch changes, and the losses."""
    real, steps = algorithm.descend, []

    def watched(optimizer, loss):
        before = {name: p.detach().clone() for name, p in whole.parts.named_parameters()}
        real(optimizer, loss)
        now = dict(whole.parts.named_parameters())
        steps.append({name for name in now if not torch.equal(now[name], before[name])})

    monkeypatch.setattr(algorithm, "descend", watched)
    shaken(whole.parts)
    losses = whole.update(batch_of(), whole.optimizers(CONFIG))
    assert all(torch.isfinite(p).all() for p in whole.parts.parameters())
    return steps, losses


def parameters_of(whole, parts):
    return {n for n, _ in whole.parts.named_parameters() if n.split(".")[0] in parts}


def test_algorithm_1_moves_what_each_of_its_lines_names_and_nothing_else(monkeypatch):
    whole = built(PAPER)
    identity = {k: v.clone() for k, v in whole.model.identity_encoder.state_dict().items()}
    (second, third, fourth), _ = updates(whole, monkeypatch)
    assert second == parameters_of(whole, ENCODERS | CLASSIFIERS)
    assert third == parameters_of(whole, {"discriminator"})
    assert fourth == parameters_of(whole, ENCODERS | {"decoder"})
    assert differing(whole.model.identity_encoder.state_dict(), identity) == []


def test_jointly_everything_but_d_moves_once(monkeypatch):
    whole = built(COMPACT)
    (third, rest), _ = updates(whole, monkeypatch)
    assert third == parameters_of(whole, {"discriminator"})
    assert rest == parameters_of(whole, ENCODERS | OURS | {"decoder"})


def test_jointly_the_classifiers_feel_their_own_losses_only():
    whole = built(COMPACT)
    batch = batch_of()
    identity = whole.identity(batch.images).detach()
    features = whole.encode(batch.images)
    whole.generation(batch, identity, features, {}).backward()
    felt = {n.split(".")[0] for n, p in whole.parts.named_parameters() if p.grad is not None}
    assert felt == ENCODERS | {"decoder"}


def test_generation_leaves_the_discriminator_as_it_was_norms_included():
    whole = built(PAPER)
    batch = batch_of()
    before = {k: v.clone() for k, v in whole.parts["discriminator"].state_dict().items()}
    terms = {}
    identity = whole.identity(batch.images).detach()
    whole.generation(batch, identity, whole.encode(batch.images), terms).backward()
    assert differing(whole.parts["discriminator"].state_dict(), before) == []
    assert all(p.grad is None for p in whole.parts["discriminator"].parameters())
    assert all(p.requires_grad for p in whole.parts["discriminator"].parameters())
    assert whole.parts["discriminator"].training


@pytest.mark.parametrize(
    ("part", "silent"),
    [("confusion", ["confusion"]), ("id", ["id"]), ("discriminator", ["fake_neutral"])],
)
def test_a_part_that_is_left_out_prints_nothing(part, silent, monkeypatch):
    objective = recipe("paper", (part,)).objective
    changes = {"lambdas": objective.lambdas, "betas": objective.betas}
    whole = built(PAPER, discriminator=objective.discriminator, **changes)
    _, losses = updates(whole, monkeypatch)
    assert [losses[name].item() for name in silent] == [0.0] * len(silent)
    _, all_of_them = updates(built(PAPER), monkeypatch)
    assert all(all_of_them[name].item() > 0 for name in silent)


def test_without_a_pose_branch_faces_are_identity_and_expression(monkeypatch):
    whole = built(PAPER, pose_backbone=None)
    assert not {"pose_encoder", "pose_classifier"} & set(whole.parts.keys())
    _, losses = updates(whole, monkeypatch)
    assert losses["pose"].item() == losses["confusion"].item() == 0


@pytest.mark.parametrize("tiny", [PAPER, COMPACT], ids=["paper", "compact"])
def test_the_objective_is_the_sum_of_equations_11_and_12(tiny, monkeypatch):
    whole = built(tiny)
    _, terms = updates(whole, monkeypatch)
    lambdas, betas = whole.objective.lambdas, whole.objective.betas
    names = ("fake_neutral", "fake_expression", "id", "recon")
    expected = sum(w * terms[name] for w, name in zip(lambdas, names, strict=True))
    expected = expected + terms["expression"] + terms["pose"]
    expected = expected + betas[0] * terms["cos"] + betas[1] * terms["confusion"]
    torch.testing.assert_close(terms["loss"], expected)
    assert (terms["confusion"] == 0) == (tiny is COMPACT)


def test_the_decoder_and_d_start_as_in_the_paper():
    torch.manual_seed(0)
    identity = Encoder(BACKBONE, PAPER.feature_dim).state_dict()
    whole = built(PAPER)
    for part in ("pose_encoder", "expression_encoder", "discriminator.encoder"):
        assert differing(whole.parts.get_submodule(part).state_dict(), identity) == []


def test_an_expression_encoder_of_lower_rank_starts_as_the_principal_part_of_the_whole():
    torch.manual_seed(1)
    whole = shaken(Encoder(BACKBONE)).eval()
    width = whole.backbone.num_features
    whole = shaken(Encoder(BACKBONE, width)).eval()
    pooled = torch.randn(50, 3) @ torch.randn(3, width) + torch.randn(width)
    narrow = Encoder(BACKBONE, width, rank=3)
    narrow.start_from(whole, pooled)
    narrow.eval()
    features = whole.norm(pooled)
    torch.testing.assert_close(
        narrow.norm(narrow.projection(pooled)), features, atol=1e-3, rtol=1e-3
    )
    assert torch.linalg.matrix_rank(features - features.mean(0), tol=1e-3) == 3
    with pytest.raises(ValueError, match="principal axes of 2 crops cannot fill 3 dimensions"):
        narrow.start_from(whole, pooled[:2])


def test_the_parts_of_the_paper_can_be_left_out_and_no_others():
    objective = recipe("compact", ("cos", "recon", "rank")).objective
    assert objective.betas == (0.0, 1.0)
    assert objective.lambdas == (0.001, 0.001, 1.0, 0.0)
    assert objective.expression_rank is None
    assert recipe("paper", ("pose",)).objective.pose_backbone is None
    with pytest.raises(ValueError, match="unknown term 'poses'"):
        recipe("paper", ("poses",))
    with pytest.raises(ValueError, match="'paper-baseline' has no terms to leave out"):
        recipe("paper-baseline", ("cos",))
    with pytest.raises(ValueError, match="'wide' has no term 'confusion' to leave out"):
        recipe("wide", ("confusion",))
    with pytest.raises(ValueError, match="did you mean paper"):
        recipe("papers")


def test_the_paper_recipe_is_that_of_section_4_2():
    chosen = RECIPES["paper"]
    assert (chosen.main.epochs, chosen.main.batch_size, chosen.main.lr) == (30, 32, 1e-4)
    assert (chosen.main.schedule, chosen.main.weight_decay) == ("step", 0.0)
    assert chosen.objective.lambdas == (0.001, 0.001, 1.0, 10.0)
    assert chosen.objective.betas == (0.5, 1.0)
    assert (chosen.backbone, chosen.objective.pose_backbone) == ("resnet18", "resnet18")
    assert not chosen.objective.joint
    assert RECIPES["paper-baseline"].main == chosen.main
    for name in ("compact", "wide"):
        assert RECIPES[f"{name}-baseline"].main == RECIPES[name].main
        assert RECIPES[f"{name}-baseline"].start == RECIPES[name].start
