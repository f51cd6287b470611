"""Each loss of IPD-FER against a transcription of its formula in loops."""

import math

import pytest
import torch

from facezoo.models.ipd_fer.losses import (
    classification_loss,
    confusion_loss,
    discriminator_loss,
    expression_loss,
    fake_expression_loss,
    fake_neutral_loss,
    generative_loss,
    generator_loss,
    identity_consistency_loss,
    margin_loss,
    orthogonality_loss,
    pair_loss,
    pose_loss,
    pose_regression_loss,
    reconstruction_loss,
    same_identity_loss,
    similarity_matching_loss,
    similarity_ranking_loss,
    swap_loss,
    teacher_loss,
)


def softmax(row):
    powers = [math.exp(value) for value in row]
    return [power / sum(powers) for power in powers]


def cosine(a, b):
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def cross_entropies(logits, targets):
    return [
        -sum(t * math.log(p) for t, p in zip(target, softmax(row), strict=True))
        for row, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]


def mean(values):
    values = list(values)
    return torch.tensor(sum(values) / len(values))


def l1(a, b):
    """Mean absolute difference of two flat lists."""
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)


def flat(batch):
    return [image.flatten().tolist() for image in batch]


def test_reconstruction_loss_is_equation_1():
    full, neutral, real = torch.rand(3, 4, 3, 2, 2)
    is_neutral = torch.tensor([True, False, False, True])
    each = [
        l1(f, x) + (l1(n, x) if c else 0)
        for f, n, x, c in zip(flat(full), flat(neutral), flat(real), is_neutral, strict=True)
    ]
    torch.testing.assert_close(reconstruction_loss(full, neutral, real, is_neutral), mean(each))


def test_identity_consistency_loss_is_equation_2():
    full, neutral, real = torch.randn(3, 5, 7)
    each = [
        l1(f, x) + l1(n, x)
        for f, n, x in zip(full.tolist(), neutral.tolist(), real.tolist(), strict=True)
    ]
    torch.testing.assert_close(identity_consistency_loss(full, neutral, real), mean(each))


def test_orthogonality_loss_is_equation_3():
    identity, expression = torch.randn(2, 6, 5)
    pairs = zip(identity.tolist(), expression.tolist(), strict=True)
    wanted = mean(abs(cosine(a, b)) for a, b in pairs)
    torch.testing.assert_close(orthogonality_loss(identity, expression), wanted)
    assert orthogonality_loss(torch.eye(2)[:1], torch.eye(2)[1:]) == 0


def test_confusion_loss_is_equation_4_and_minimal_for_uniform_poses():
    logits = torch.randn(4, 5)
    wanted = mean(-sum(math.log(p) / 5 for p in softmax(row)) for row in logits.tolist())
    torch.testing.assert_close(confusion_loss(logits), wanted)
    torch.testing.assert_close(confusion_loss(torch.ones(2, 5)), torch.tensor(math.log(5)))


def test_pose_loss_is_equation_6_over_the_rows_of_known_pose():
    logits, labels = torch.randn(4, 5), torch.tensor([3, -1, 0, 4])
    known = [(row, c) for row, c in zip(logits.tolist(), labels.tolist(), strict=True) if c >= 0]
    wanted = mean(-math.log(softmax(row)[c]) for row, c in known)
    torch.testing.assert_close(pose_loss(logits, labels), wanted)
    assert pose_loss(logits, torch.full((4,), -1)) == 0


def test_classification_loss_is_equation_7():
    assert classification_loss(torch.tensor(2.0), torch.tensor(0.5)) == 2.5


def test_the_discriminators_losses_are_equations_8_to_10():
    logits, targets = torch.randn(5, 8), torch.rand(5, 8).softmax(1)
    wanted = mean(cross_entropies(logits, targets))
    torch.testing.assert_close(discriminator_loss(logits, targets), wanted)
    torch.testing.assert_close(fake_expression_loss(logits, targets), wanted)
    of_neutral = mean(-math.log(softmax(row)[2]) for row in logits.tolist())
    torch.testing.assert_close(fake_neutral_loss(logits, 2), of_neutral)


def test_generative_loss_is_equation_11_with_the_weights_of_section_4_2():
    neutral, expression, identity, reconstruction = terms = torch.rand(4)
    wanted = 0.001 * neutral + 0.001 * expression + 1 * identity + 10 * reconstruction
    torch.testing.assert_close(generative_loss(tuple(terms)), wanted)
    torch.testing.assert_close(generative_loss(tuple(terms), (1, 0, 0, 0)), neutral)


def test_generator_loss_is_equation_12_with_the_weights_of_section_4_2():
    generative, classification, orthogonality, confusion = torch.rand(4)
    wanted = generative + classification + 0.5 * orthogonality + 1 * confusion
    found = generator_loss(generative, classification, orthogonality, confusion)
    torch.testing.assert_close(found, wanted)


def test_expression_loss_of_classes_is_equation_5():
    logits, classes = torch.randn(6, 8), torch.tensor([0, 7, 3, 3, 1, 5])
    wanted = -sum(math.log(softmax(row)[c]) for row, c in zip(logits.tolist(), classes)) / 6  # noqa: B905
    hot = torch.nn.functional.one_hot(classes, 8).float()
    torch.testing.assert_close(expression_loss(logits, hot), torch.tensor(wanted))


def test_expression_loss_of_votes_is_their_cross_entropy():
    logits, votes = torch.randn(5, 8), torch.rand(5, 8)
    votes = votes / votes.sum(1, keepdim=True)
    wanted = sum(cross_entropies(logits, votes)) / 5
    torch.testing.assert_close(expression_loss(logits, votes), torch.tensor(wanted))


def test_expression_loss_weighs_rows_by_trust():
    logits, votes, trust = torch.randn(4, 8), torch.rand(4, 8), torch.tensor([1.0, 0.3, 0.0, 2.0])
    votes = votes / votes.sum(1, keepdim=True)
    each = cross_entropies(logits, votes)
    wanted = sum(w * loss for w, loss in zip(trust.tolist(), each, strict=True)) / 3.3
    torch.testing.assert_close(expression_loss(logits, votes, trust), torch.tensor(wanted))


def test_equal_weights_change_nothing():
    logits, votes = torch.randn(4, 8), torch.full((4, 8), 1 / 8)
    torch.testing.assert_close(
        expression_loss(logits, votes, torch.full((4,), 0.3)), expression_loss(logits, votes)
    )


def test_a_batch_without_trust_costs_nothing_and_stays_finite():
    logits = torch.randn(3, 8, requires_grad=True)
    loss = expression_loss(logits, torch.full((3, 8), 1 / 8), torch.zeros(3))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_teacher_loss_is_one_minus_the_mean_cosine():
    predicted, teacher = torch.randn(5, 16), torch.randn(5, 16)
    pairs = zip(predicted.tolist(), teacher.tolist(), strict=True)
    wanted = sum(1 - cosine(p, t) for p, t in pairs) / 5
    torch.testing.assert_close(teacher_loss(predicted, teacher), torch.tensor(wanted))


def test_teacher_loss_is_0_for_parallel_and_2_for_opposite_embeddings():
    teacher = torch.randn(4, 16)
    assert teacher_loss(3 * teacher, teacher).item() == pytest.approx(0, abs=1e-6)
    assert teacher_loss(-0.5 * teacher, teacher).item() == pytest.approx(2, abs=1e-6)


def test_similarity_matching_loss_compares_every_pair_of_different_faces():
    features, teacher = torch.randn(5, 7), torch.randn(5, 128)
    f, t = features.tolist(), teacher.tolist()
    gaps = [
        (cosine(f[i], f[j]) - cosine(t[i], t[j])) ** 2 for i in range(5) for j in range(5) if i != j
    ]
    loss = similarity_matching_loss(features, teacher)
    torch.testing.assert_close(loss, torch.tensor(sum(gaps) / 20))


def test_similarity_matching_loss_is_0_when_the_feature_is_the_teacher_turned_and_scaled():
    teacher = torch.randn(6, 16)
    turn, _ = torch.linalg.qr(torch.randn(16, 16))
    loss = similarity_matching_loss(2.5 * teacher @ turn, teacher)
    assert loss.item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("scale", "margin"), [(32.0, 0.2), (10.0, 0.35), (1.0, 0.0)])
def test_margin_loss_is_cosface(scale, margin):
    features, centres = torch.randn(5, 9), torch.randn(4, 9)
    labels = [2, 0, 3, 0, 1]
    losses = []
    for feature, person in zip(features.tolist(), labels, strict=True):
        cosines = [cosine(feature, centre) for centre in centres.tolist()]
        true = math.exp(scale * (cosines[person] - margin))
        others = sum(math.exp(scale * c) for i, c in enumerate(cosines) if i != person)
        losses.append(-math.log(true / (true + others)))
    loss = margin_loss(features, centres, torch.tensor(labels), scale, margin)
    torch.testing.assert_close(loss, torch.tensor(sum(losses) / 5))


def test_margin_loss_leaves_out_faces_without_a_name():
    features, centres = torch.randn(4, 9), torch.randn(3, 9)
    named = margin_loss(features[[0, 2]], centres, torch.tensor([1, 2]))
    torch.testing.assert_close(margin_loss(features, centres, torch.tensor([1, -1, 2, -1])), named)


def test_margin_loss_of_nobody_is_0_and_can_be_differentiated():
    features = torch.randn(3, 9, requires_grad=True)
    loss = margin_loss(features, torch.randn(2, 9), torch.full((3,), -1))
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: expression_loss(x, torch.full((4, 8), 1 / 8)),
        lambda x: teacher_loss(x, torch.ones(4, 8).cumsum(1)),
        lambda x: similarity_matching_loss(x, torch.eye(4, 16)),
        lambda x: margin_loss(x, torch.eye(5, 8), torch.tensor([0, 1, 2, 4])),
    ],
    ids=["expression", "teacher", "similarity matching", "margin"],
)
def test_every_loss_is_float32_and_reaches_its_input_under_autocast(loss):
    features = torch.randn(4, 8, dtype=torch.bfloat16, requires_grad=True)
    value = loss(features)
    value.backward()
    assert value.dtype == torch.float32
    assert features.grad.abs().sum() > 0


def cosines_with_others(rows, past):
    """The cosines of each row with every other row and every past one."""
    rows, past = rows.tolist(), past.tolist()
    return [
        [cosine(a, b) for j, b in enumerate(rows) if j != i] + [cosine(a, b) for b in past]
        for i, a in enumerate(rows)
    ]


def test_similarity_matching_compares_a_batch_with_itself_and_with_the_past():
    features, teacher = torch.randn(4, 6), torch.randn(4, 3)
    past = torch.randn(5, 6), torch.randn(5, 3)
    pairs = zip(
        cosines_with_others(features, past[0]), cosines_with_others(teacher, past[1]), strict=True
    )
    expected = mean(
        (a - b) ** 2 for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True)
    )
    torch.testing.assert_close(similarity_matching_loss(features, teacher, past), expected)


def test_similarity_ranking_is_the_divergence_of_nearest_faces():
    features, teacher = torch.randn(4, 6), torch.randn(4, 3)
    past = torch.randn(5, 6), torch.randn(5, 3)
    each = []
    for ours, theirs in zip(
        cosines_with_others(features, past[0]), cosines_with_others(teacher, past[1]), strict=True
    ):
        p, q = (softmax([value / 0.2 for value in row]) for row in (theirs, ours))
        each.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    found = similarity_ranking_loss(features, teacher, past, temperature=0.2)
    torch.testing.assert_close(found, mean(each))
    torch.testing.assert_close(
        similarity_ranking_loss(teacher, teacher), torch.tensor(0.0), atol=1e-6, rtol=0
    )


def test_same_identity_loss_is_one_minus_the_mean_cosine():
    first, second = torch.randn(2, 5, 4)
    expected = mean(1 - cosine(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True))
    torch.testing.assert_close(same_identity_loss(first, second), expected)


def test_the_prior_is_added_to_the_logits():
    logits, votes, prior = torch.randn(5, 8), torch.rand(5, 8).softmax(1), torch.randn(8)
    expected = mean(cross_entropies(logits + prior, votes))
    torch.testing.assert_close(expression_loss(logits, votes, prior=prior), expected)


def test_pose_regression_is_the_mean_error_over_the_rows_of_known_pose():
    predicted, poses = torch.randn(4, 4), torch.randn(4, 4)
    poses[2, 1] = float("nan")
    rows = [0, 1, 3]
    expected = mean(l1(predicted[r].tolist(), poses[r].tolist()) for r in rows)
    torch.testing.assert_close(pose_regression_loss(predicted, poses), expected)
    unknown = pose_regression_loss(predicted.requires_grad_(), torch.full((4, 4), float("nan")))
    unknown.backward()
    assert unknown == 0
    assert torch.equal(predicted.grad, torch.zeros(4, 4))


def test_pair_loss_is_the_distance_in_pixels_and_in_unit_feature_maps():
    images, targets = torch.rand(2, 2, 3, 4, 4)
    maps = [torch.randn(2, 2, 5, 2, 2), torch.randn(2, 2, 3, 1, 1)]
    pixels = mean(l1(a, b) for a, b in zip(flat(images), flat(targets), strict=True))
    layers = []
    for ours, theirs in maps:
        squares = []
        for a, b in zip(ours, theirs, strict=True):
            for y in range(a.shape[1]):
                for x in range(a.shape[2]):
                    u, v = a[:, y, x] / a[:, y, x].norm(), b[:, y, x] / b[:, y, x].norm()
                    squares.append(float((u - v).square().sum()))
        layers.append(sum(squares) / len(squares))
    differences = images - targets
    across = differences[..., 1:] - differences[..., :-1]
    down = differences[:, :, 1:] - differences[:, :, :-1]
    expected = pixels + across.abs().mean() + down.abs().mean() + sum(layers) / 2
    layers_of = [m[0] for m in maps], [m[1] for m in maps]
    torch.testing.assert_close(pair_loss(images, targets, layers_of), expected)
    assert pair_loss(images, images, (layers_of[0], layers_of[0])) == 0


def test_swap_loss_asks_for_one_identity_and_the_other_expression():
    features, sources = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    logits = torch.randn(2, 3, 8)
    cosines = [
        mean(1 - cosine(a, b) for a, b in zip(f.tolist(), s.tolist(), strict=True))
        for f, s in zip(features, sources, strict=True)
    ]
    divergences = []
    for ours, theirs in zip(*logits.tolist(), strict=True):
        p, q = softmax(theirs), softmax(ours)
        divergences.append(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))
    expected = cosines[0] + cosines[1] + mean(divergences)
    torch.testing.assert_close(swap_loss(tuple(features), tuple(sources), tuple(logits)), expected)
    assert swap_loss(tuple(features), tuple(features), (logits[0], logits[0])) < 1e-5
