"""Repositories are made from card and weights; published weights never change."""

import json
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Repo, client, running_hub, write_checkpoint
from huggingface_hub import ModelCard

import facezoo
from facezoo.errors import UnknownNameError, WeightsCorruptedError, WeightsNotFoundError
from facezoo.hub import card as cards
from facezoo.hub.card import Card
from facezoo.hub.publish import publish
from facezoo.models.ipd_fer import IPDFER

NAME = "tiny-face.first"
SEND = """
from facezoo.hub import publish as module
from facezoo.hub.publish import publish
module.project_urls = lambda: ["https://github.com/me/facezoo"]
options = {"organization": "org", "dry_run": False, "token": "hf_x"}
attempt(lambda: publish("tiny-face", **options)[0].commit)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(cards, "CHECKPOINTS", tmp_path / "checkpoints")
    write_checkpoint(tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def test_a_dry_run_shows_files_and_sizes_and_touches_no_network(folder, monkeypatch, capsys):
    monkeypatch.setattr("huggingface_hub.HfApi.__init__", lambda *a, **k: 1 / 0)
    (publication,) = publish([NAME], organization="org")
    size = (folder / f"{NAME}.safetensors").stat().st_size
    assert publication.repo == f"org/{NAME}"
    assert publication.commit is None
    assert publication.files["model.safetensors"] == size
    assert set(publication.files) == {"README.md", "config.json", "model.safetensors"}
    shown = capsys.readouterr().out
    assert f"{NAME}: would send to org/{NAME}" in shown
    for name, count in publication.files.items():
        assert f"{name:<20} {count:>12,} bytes" in shown


def test_publishing_sends_exactly_what_the_dry_run_showed(folder, tmp_path):
    (planned,) = publish("tiny-face", organization="org")
    with running_hub() as hub:
        output = client(SEND, folder, home=tmp_path, hub=hub)
        sent = hub.repos[f"org/{NAME}"].files
        assert {name: len(content) for name, content in sent.items()} == planned.files
        assert f'put "revision": "{COMMIT}" in its card' in output
        assert output.splitlines()[-1] == COMMIT
        agents = [headers for method, _, headers in hub.requests if method == "POST"]
        assert all("facezoo/" in str(headers) for headers in agents)
    card = Card.parse(json.loads(sent["config.json"]))
    assert card.hub.repo == f"org/{NAME}"
    assert card.weights == cards.card_named(NAME).weights
    assert sent["README.md"].decode().startswith("---\n")


def test_a_picture_is_the_example_of_the_model_card(folder, tmp_path):
    picture = "examples/portraits/grace_hopper.jpg"
    publish(NAME, organization="org", picture=picture, out=tmp_path)
    sent = tmp_path / "org" / NAME
    assert (sent / "example.jpg").read_bytes() == Path(picture).read_bytes()
    card = ModelCard.load(sent / "README.md")
    assert card.data.widget[0]["src"] == "example.jpg"
    assert "(example.jpg)" in card.text


def test_nothing_is_sent_while_the_package_has_placeholders(folder, monkeypatch, capsys):
    urls = ["https://github.com/OWNER/facezoo"]
    monkeypatch.setattr("facezoo.hub.publish.project_urls", lambda: urls)
    publish(NAME, organization="org")
    assert "replace OWNER" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"placeholder OWNER in https://github\.com/OWNER"):
        publish(NAME, organization="org", dry_run=False)


@pytest.mark.parametrize("name", facezoo.list_models(pretrained=True))
def test_model_cards_are_valid_on_the_hub_and_list_scores_on_test_splits_only(name):
    card = cards.card_named(name)
    shown = ModelCard(card.to_markdown())
    results = shown.data.eval_results or []
    assert {result.dataset_split for result in results} <= {"test"}
    scores = {metric.value for metric in card.metrics if metric.split == "test"}
    assert {result.metric_value for result in results} <= scores
    assert shown.text.index("## Limits") < shown.text.index("## How to use")


def test_the_bytes_of_a_tag_never_change(folder, tmp_path):
    with running_hub({f"org/{NAME}": Repo({"model.safetensors": b"other"})}) as hub:
        output = client(SEND, folder, home=tmp_path, hub=hub)
        assert "WeightsError" in output
        assert "give the new weights a new tag" in output
        assert set(hub.repos[f"org/{NAME}"].files) == {"model.safetensors"}


def test_weights_that_do_not_match_their_card_are_not_published(folder):
    with pytest.raises(UnknownNameError):
        publish([NAME, "nothing"], organization="org")
    path = folder / f"{NAME}.safetensors"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(WeightsCorruptedError, match="is altered"):
        publish(NAME, organization="org")
    assert path.exists()
    path.unlink()
    with pytest.raises(WeightsNotFoundError, match="no weights file"):
        publish(NAME, organization="org")


def test_a_saved_folder_is_published_and_its_files_written(tmp_path, capsys):
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    saved = model.save_pretrained(tmp_path / "saved")
    (publication,) = publish(saved, organization="me", out=tmp_path / "sent")
    folder = tmp_path / "sent" / publication.repo
    assert str(folder) in capsys.readouterr().out
    assert publication.files == {file.name: file.stat().st_size for file in folder.iterdir()}
    assert Card.load(folder / "config.json").hub.repo == publication.repo
    again = facezoo.load(folder, device="cpu")
    torch.testing.assert_close(
        again.expression_classifier.weight, model.expression_classifier.weight
    )


def test_two_checkpoints_do_not_go_to_one_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    saved = [model.save_pretrained(folder) for folder in ("monday", "tuesday")]
    with pytest.raises(ValueError, match=r"would both go to me/ipd-fer\.untrained"):
        publish(saved, organization="me", out="sent")
    assert not Path("sent").exists()


def test_a_path_is_a_folder_even_if_a_model_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = IPDFER("test_resnet.r160_in1k", 8, pose_backbone=None, decoder_size=None)
    (publication,) = publish(model.save_pretrained("ipd-fer"), organization="me")
    assert publication.content["model.safetensors"] == Path("ipd-fer/model.safetensors")


def test_a_repository_on_the_hub_is_not_published_again():
    with pytest.raises(ValueError, match="on the Hub already"):
        publish("hf-hub:org/name", organization="me")
