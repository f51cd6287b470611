"""The public names, checked in: adding or removing one is a decision, not an accident."""

import facezoo

PUBLIC = [
    "Card",
    "ExpressionPrediction",
    "FaceEncoding",
    "FaceModel",
    "Faces",
    "StyleGANInverter",
    "__version__",
    "benchmark",
    "cluster",
    "crops",
    "detect",
    "download",
    "errors",
    "extract",
    "finetune",
    "info",
    "list_models",
    "load",
    "plot",
    "register",
    "remove_identity",
    "show",
    "similarity",
    "verify",
    "video",
]


def test_the_public_names_are_those_checked_in():
    assert sorted(facezoo.__all__) == sorted(PUBLIC)


def test_every_public_name_resolves_and_is_listed_by_dir():
    for name in PUBLIC:
        assert getattr(facezoo, name) is not None
        assert name in dir(facezoo)


def test_a_name_that_does_not_exist_is_an_attribute_error():
    assert not hasattr(facezoo, "no_such_name")


def test_the_version_is_that_of_the_version_module():
    from facezoo.version import __version__

    assert facezoo.__version__ == __version__
