import pytest

from fl.data.synthetic import synthesize

SETTINGS = {"pair": "ko-en", "devices": 3, "new_people": 1, "sentences": 7, "seed": 5}


@pytest.fixture(scope="session")
def settings():
    pytest.importorskip("espeakng_loader", reason="synthetic speech needs the extra synth")
    return dict(SETTINGS)


@pytest.fixture(scope="session")
def tiny(settings, tmp_path_factory):
    """The manifest of a population of three devices and a held-out speaker, seven sentences each."""
    return synthesize(tmp_path_factory.mktemp("tiny") / "people", **settings)
