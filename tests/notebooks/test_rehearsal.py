"""The profiles `colab` and `paper`, rehearsed: from a Hub that this machine plays, with the amounts of tests/rehearsal.toml."""

import pytest
import rehearsal_hub
from hub_server import Hub
from rehearsal import CUTS, CUTS_FILE, ROOT, fleurs, librispeech, models, values
from rehearsal_hub import CLIPS, DECOYS, link_speech, model

from asrlib.corpora import catalogue
from asrlib.course import records, registry, runner

FLEURS = {name.split("_")[0]: name for name in catalogue.facts("fleurs")["configurations"].split()}
LIMITS = {"COMPRESSION"}  # loosened upwards: random weights write loops
REHEARSED = [(profile, name) for profile, tables in CUTS.items() for name in tables]


@pytest.mark.parametrize(("profile", "name"), REHEARSED)
def test_a_rehearsal_cuts_amounts_only(profile, name):
    whole = values(profile, name)
    for key, cut in CUTS[profile][name].items():
        if isinstance(cut, list):
            assert cut and len(cut) < len(whole[key]) and set(cut) < set(whole[key]), key
        else:
            assert isinstance(cut, int | float) and not isinstance(cut, bool) and cut > 0, key
            assert cut > whole[key] if key in LIMITS else cut < whole[key], key


@pytest.fixture
def rehearse(tmp_path, monkeypatch):
    """Return a function that runs a notebook under a profile from the played Hub: (record, server)."""

    def run(profile, name):
        given = values(profile, name)
        served = [model(model_id) for model_id in models(given)]
        if librispeech(given):
            served.append(rehearsal_hub.librispeech())
        if languages := fleurs(given):
            served.append(rehearsal_hub.fleurs(*(FLEURS[language] for language in languages)))
        if given.get("CTC_ID"):
            served.append(rehearsal_hub.letters(given["CTC_ID"]))
        if given.get("CORPUS") in catalogue.PUBLISHED:
            served.append(rehearsal_hub.published(given["CORPUS"]))
        link_speech(registry.inputs(ROOT, [name])[1], tmp_path / "cache")
        for key in ("HF_HUB_OFFLINE", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_TOKEN", "ASRLIB_DATA"):
            monkeypatch.delenv(key, raising=False)
        with Hub(served).playing() as hub:
            for key, value in _environment(hub, tmp_path).items():
                monkeypatch.setenv(key, value)
            (outcome,) = runner.run(ROOT, [name], profile=profile, output=tmp_path / "runs", timeout=300)
        assert outcome.status == "finished", str(outcome)
        return records.load(tmp_path / "runs" / profile / name / "record.json"), hub

    return run


def _environment(hub, folder):
    """Return the variables that lead all questions to the played Hub: as the Hub, and as the proxy for every other host."""
    proxies = {f"{kind}_proxy": hub.address for kind in ("http", "https", "all")} | {"no_proxy": "127.0.0.1,localhost"}
    return {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(folder / "hub"),
        "ASRLIB_CACHE": str(folder / "cache"),
        "ASRLIB_REHEARSAL": str(CUTS_FILE),
        **proxies,
        **{key.upper(): value for key, value in proxies.items()},
    }


@pytest.mark.weights
@pytest.mark.parametrize(("profile", "name"), REHEARSED)
def test_it_runs_from_the_hub(rehearse, profile, name):
    record, hub = rehearse(profile, name)
    given = values(profile, name)
    assert record["run"]["profile"] == profile
    used = {item["id"]: item for item in record["inputs"] if item["kind"] == "checkpoint"}
    assert set(used) == set(models(given))
    for model_id, item in used.items():
        assert item["revision"] == hub.repositories["model", model_id].commit, model_id
    published = [metric for metric in record["metrics"] if metric["labels"].get("corpus") == "librispeech"]
    assert {metric["utterances"] for metric in published} == ({CLIPS} if librispeech(given) else set())
    assert not [path for path in hub.asked if not path.startswith("/")], "another host was asked"
    assert not [path for path in hub.asked if path.endswith(DECOYS)]
