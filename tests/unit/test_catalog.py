"""Plug-ins are found by file name, and their settings are read from text."""

import pytest

from rayad import catalog
from rayad.errors import OptionError
from rayad.models import cae


def test_every_plug_in_is_found_by_its_file_name():
    assert {"cae", "bvae"} <= set(catalog.names("models"))
    assert {"spn", "mixture"} <= set(catalog.names("density"))
    assert {"mias", "folder", "phantom"} <= set(catalog.names("datasets"))


def test_settings_have_names():
    assert catalog.configure("models", "cae", ["preset=paper"]) == cae.Config(padding="same", learning_rate=1e-5)
    changed = catalog.configure("models", "cae", ["padding=valid", "preset=paper"])
    assert changed == cae.Config(padding="valid", learning_rate=1e-5)
    with pytest.raises(OptionError, match="cae has no preset 'papr', only paper"):
        catalog.configure("models", "cae", ["preset=papr"])
    with pytest.raises(OptionError, match="lbp has no preset 'paper', only its defaults"):
        catalog.configure("models", "lbp", {"preset": "paper"})


def test_what_a_setting_differs_in_from_the_paper_s():
    assert catalog.differences("models", "cae", cae.Config(padding="same", latents=8)) == {
        "latents": (8, 64),
        "learning_rate": (1e-3, 1e-5),
    }
    assert catalog.differences("models", "cae", catalog.configure("models", "cae", ["preset=paper"])) == {}
    assert catalog.differences("models", "lbp", catalog.configure("models", "lbp")) == {}


@pytest.mark.parametrize("folder", ["models", "density"])
def test_every_preset_is_one_of_its_plug_in(folder: str):
    for name in catalog.names(folder):
        for preset in catalog.presets(catalog.find(folder, name)):
            catalog.configure(folder, name, [f"preset={preset}"])


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(OptionError, match="no model 'cea'; rayad has bvae, cae"):
        catalog.find("models", "cea")


def test_settings_are_read_from_text_by_the_fields_types():
    config = catalog.configure("datasets", "phantom", ["patients=7", "diseased=0.25", "pectoral=false"])
    assert (config.patients, config.diseased, config.pectoral) == (7, 0.25, False)
    assert catalog.configure("density", "spn", ["states=0,8,512"]).states == (0, 8, 512)
    with pytest.raises(OptionError, match="whole numbers with commas between, not '8;9'"):
        catalog.configure("density", "spn", ["states=8;9"])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("patients", "NAME=VALUE"),
        ("patient=7", "it has source, patients"),
        ("patients=many", "is a number, not 'many'"),
        ("pectoral=maybe", "true or false"),
    ],
)
def test_a_wrong_setting_says_what_is_wanted(text: str, answer: str):
    with pytest.raises(OptionError, match=answer):
        catalog.configure("datasets", "phantom", [text])
