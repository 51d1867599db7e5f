"""A model file is used as it was written, or not at all."""

from __future__ import annotations

import hashlib
import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from iqtflow.image.intensity import NORMALISATION
from iqtflow.models import model_file as models
from iqtflow.models.card import Card
from iqtflow.models.model_file import (
    find_model,
    join_models,
    list_shipped,
    load_model,
    read_card,
    register_shipped,
    save_model,
    stamp_figures,
)
from iqtflow.models.registry import build_network
from iqtflow.utils.errors import InputError, UsageError
from iqtflow.utils.system import peak_memory_gb

torch.set_num_threads(1)  # threads that wait for each other on a busy machine take minutes for milliseconds

SETTINGS = {"k": 4, "filters": 4, "residual": True}


def make_network(seed: int = 0, **settings) -> torch.nn.Module:
    """Return a tiny network with every weight and statistic away from its initial value."""
    torch.manual_seed(seed)
    network = build_network("aniso-unet", **{**SETTINGS, **settings})
    for name, buffer in network.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    torch.nn.init.normal_(network.head.weight)
    return network.eval()


def make_card(**fields) -> dict:
    return {
        "name": "tiny-k4",
        "k": 4,
        "contrast": "T1w",
        "network": {"name": "aniso-unet", "kwargs": SETTINGS},
        "normalisation": {"name": NORMALISATION},
        "geometry": "slab-centred",
        "training": {"steps": 0},
        **fields,
    }


@pytest.fixture
def model_file(tmp_path):
    return save_model(tmp_path / "tiny.safetensors", [make_network().state_dict()], make_card())


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """An empty place for models that ship."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "index.json").write_text('{"models": []}')
    monkeypatch.setattr(models, "WEIGHTS", folder)
    return folder


def rewrite(path, *, card=None, tensors=None):
    """Write a model file again with changed fields of its card, or changed tensors, and no regard for its
    digest.
    """
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    changed = {**json.loads(header["__metadata__"]["iqtflow"]), **(card or {})}
    changed = {key: value for key, value in changed.items() if value is not None}
    path.write_bytes(save({**load(content), **(tensors or {})}, metadata={"iqtflow": json.dumps(changed)}))


def test_a_network_predicts_the_same_after_a_round_trip_through_half_precision(model_file):
    x = torch.rand(1, 1, 16, 16, 4)
    with torch.inference_mode():
        before, after = make_network()(x), load_model(model_file).members[0](x)
    assert (after - before).abs().max() < 5e-3 * before.abs().max()


def test_a_loaded_network_is_ready_for_inference(model_file):
    model = load_model(model_file)
    assert not model.members[0].training
    assert not any(p.requires_grad for p in model.members[0].parameters())
    assert {p.dtype for p in model.members[0].parameters()} == {torch.float32}
    assert model.k == 4
    assert model.card["training"] == {"steps": 0}
    assert model.sha256 == hashlib.sha256(model_file.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("name", "values"),
    [("encoder.0.chain.0.2.running_var", [1e-9, 1.0, 3e5, 1e-20]), ("head.bias", [1e6])],
)
def test_numbers_out_of_the_range_of_half_precision_survive(tmp_path, name, values):
    state = {**make_network().state_dict(), name: torch.tensor(values)}
    loaded = load_model(save_model(tmp_path / "m.safetensors", [state], make_card()))
    assert torch.equal(loaded.members[0].state_dict()[name], state[name])


def test_weights_take_half_the_space(model_file):
    n_weights = sum(p.numel() for p in make_network().parameters())
    assert model_file.stat().st_size < 2.6 * n_weights


def test_the_same_model_gives_the_same_bytes(tmp_path, model_file):
    again = save_model(tmp_path / "again.safetensors", [make_network().state_dict()], make_card())
    assert again.read_bytes() == model_file.read_bytes()


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    state = make_network().state_dict()
    state["head.bias"] = torch.tensor([float("nan")])
    with pytest.raises(InputError, match=r"head\.bias"):
        save_model(tmp_path / "m.safetensors", [state], make_card())
    assert not list(tmp_path.iterdir())


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(bytes(content))


def write_foreign(metadata):
    tensors = {"weight": np.zeros(3, np.float32)}
    return lambda path: path.write_bytes(save(tensors, metadata=metadata))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_a_bit, "altered"),
        (lambda path: rewrite(path, card={"training": {"steps": 10**6}}), "altered"),
        *((lambda path, n=n: path.write_bytes(path.read_bytes()[:n]), "no whole") for n in (0, 4, 100, -1)),
        *(
            (lambda path, n=n: path.write_bytes(n.to_bytes(8, "little") + b"[" * 1000), "no whole")
            for n in (0, 2**40, 2**63, 2**64 - 1)
        ),
        *(
            (write_foreign(metadata), "model of iqtflow")
            for metadata in (
                *(None, {"format": "pt"}),
                *({"iqtflow": text} for text in ("{", "[1]", "{}")),
            )
        ),
        (
            lambda path: rewrite(
                path,
                card={"content_sha256": None},
                tensors={"member0/head.weight": np.zeros((2, 4, 1, 1, 1))},
            ),
            "do not fit",
        ),
    ],
)
def test_a_damaged_altered_or_foreign_file_is_refused(model_file, damage, words):
    damage(model_file)
    with pytest.raises(InputError, match=words):
        load_model(model_file)


def test_a_file_of_an_older_version_without_a_digest_is_opened(model_file):
    rewrite(model_file, card={"content_sha256": None})
    assert "content_sha256" not in load_model(model_file).card


class Bomb:
    """What unpickles by running code."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was loaded",)


def test_whoever_trained_what_a_model_began_with_is_known_to_it():
    first = {"members": [{"training_subjects": ["a"], "validation_subjects": ["b"]}]}
    second = {"training_subjects": ["c"], "validation_subjects": [], "before": first}
    joined = Card(
        {"training": {"members": [{**second, "before": {"training_subjects": ["d"], "before": first}}]}}
    )
    assert joined.subjects() == {"a", "b", "c", "d"}


@pytest.mark.parametrize("write", [pickle.dump, torch.save])
def test_a_pickle_is_refused_without_being_run(tmp_path, write):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as stream:
        write({"state_dict": Bomb()}, stream)
    with pytest.raises(InputError, match="no whole safetensors file"):
        load_model(path)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"format": 2}, "format 2"),
        ({"geometry": "half-pixel"}, "half-pixel"),
        ({"normalisation": {"name": "z-score"}}, "z-score"),
        ({"n_members": 2}, "those of 2"),
        ({"n_members": "1"}, "no card"),
        ({"k": 8}, "one factor"),
        ({"network": {"name": "transformer", "kwargs": {}}}, "aniso-unet"),
        ({"network": {"name": "aniso-unet", "kwargs": {"layers": 3}}}, "settings that it takes"),
        ({"network": {"name": "aniso-unet", "kwargs": {"k": 4, "filters": 100_000}}}, "do not fit"),
        ({"network": {"name": "aniso-unet"}}, "a name and settings"),
    ],
)
def test_a_card_that_this_version_cannot_follow_is_refused(model_file, fields, words):
    rewrite(model_file, card={**fields, "content_sha256": None})
    with pytest.raises(InputError, match=words):
        load_model(model_file)


def megabytes() -> float:
    """Memory that this process has taken at most so far."""
    return peak_memory_gb() * 1000


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n_members": 10**9}, "weights of 1 networks; expected those of 1000000000"),
        ({"n_members": True}, "no card"),
        ({"n_members": 0}, "those of 0"),
        ({"n_members": -1}, "those of -1"),
        *(
            ({"network": {"name": "aniso-unet", "kwargs": {"k": 4, **settings}}}, words)
            for settings, words in (
                ({"shrink": 10**7}, "do not fit"),
                ({"filters": 10**7}, "do not fit"),
                ({"filters": 10**30}, "settings that it takes|do not fit"),
                ({"filters": 0}, "whole numbers for k and filters"),
                ({"filters": "16"}, "whole numbers for k and filters"),
                ({"shrink": "2"}, "settings that it takes"),
                ({"shrink": -1}, "do not fit"),
            )
        ),
        ({"training": ["x"]}, "training"),
        ({"figures": 3}, "figures"),
        ({"patch_size": "32"}, "patch_size"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": 10**12}, "patch_size"),
        ({"figures": {"reliability": 3}}, "figures reliability n"),
        ({"figures": {"reliability": {"n": 3, "error_over_std": {"mean": "x"}}}}, "error_over_std mean 'x'"),
        ({"familiar": {"x": 1}}, "familiar threshold"),
        ({"familiar": {"threshold": 1.5}}, "a lower and an upper number"),
        ({"familiar": {"threshold": 1.5, "ranges": {"Noise": [2, "x"]}}}, "a lower and an upper number"),
    ],
)
def test_a_card_that_claims_more_than_the_file_holds_is_refused_before_memory_is_taken(
    model_file, fields, words
):
    rewrite(model_file, card={**fields, "content_sha256": None})
    before = megabytes()
    with pytest.raises(InputError, match=words):
        load_model(model_file)
    assert megabytes() < before + 50


def test_a_file_that_is_larger_than_the_memory_is_refused_from_its_header(tmp_path):
    """4 TB of weights, all of them a hole on the disk."""
    values = 10**12
    header = {
        "__metadata__": {"iqtflow": json.dumps({**make_card(), "format": 1, "n_members": 1})},
        "member0/head.weight": {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]},
    }
    content = json.dumps(header).encode()
    path = tmp_path / "hole.safetensors"
    with path.open("wb") as stream:
        stream.write(len(content).to_bytes(8, "little") + content)
        try:
            stream.truncate(8 + len(content) + 4 * values)
        except OSError:
            pytest.skip("no files of this size on this disk")
    with pytest.raises(InputError, match="memory that is free"):
        load_model(path)
    with pytest.raises(InputError, match="memory that is free"):
        read_card(path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_loaded(model_file, value):
    weights = np.zeros((1, 4, 1, 1, 1), np.float16)
    weights[0, 2] = value
    rewrite(model_file, card={"content_sha256": None}, tensors={"member0/head.weight": weights})
    for read in (load_model, read_card):
        with pytest.raises(InputError, match=r"1 weights of member0/head\.weight that are not finite"):
            read(model_file)


def test_a_model_whose_name_is_a_path_does_not_ship(tmp_path, shelf):
    path = save_model(tmp_path / "x.safetensors", [make_network().state_dict()], make_card(name="../../x"))
    with pytest.raises(UsageError, match="expected a name"):
        register_shipped(path)


def test_an_ensemble_holds_the_weights_of_its_members(tmp_path):
    files = [
        save_model(tmp_path / f"{seed}.safetensors", [make_network(seed).state_dict()], make_card())
        for seed in range(3)
    ]
    joined = load_model(join_models(tmp_path / "joined.safetensors", files, name="three"))
    assert joined.card["name"] == "three"
    assert len(joined.card["training"]["members"]) == 3
    x = torch.rand(1, 1, 16, 16, 4)
    with torch.inference_mode():
        for file, member in zip(files, joined.members, strict=True):
            assert torch.equal(load_model(file).members[0](x), member(x))


def test_networks_of_different_factors_are_no_ensemble(tmp_path, model_file):
    other = save_model(
        tmp_path / "k2.safetensors",
        [make_network(k=2).state_dict()],
        make_card(k=2, network={"name": "aniso-unet", "kwargs": {**SETTINGS, "k": 2}}),
    )
    with pytest.raises(InputError, match="k 2"):
        join_models(tmp_path / "joined.safetensors", [model_file, other], name="mixed")


def test_figures_are_added_without_touching_the_weights(tmp_path, model_file):
    stamped = stamp_figures(model_file, tmp_path / "stamped.safetensors", {"psnr": {"gain": 3.5}})
    assert read_card(stamped)["figures"] == {"psnr": {"gain": 3.5}}
    before, after = load(model_file.read_bytes()), load(stamped.read_bytes())
    assert all(np.array_equal(before[name], after[name]) for name in before)
    load_model(stamped)


def test_a_shipped_model_is_found_by_its_name_and_held_to_its_pin(model_file, shelf):
    info = register_shipped(model_file)
    assert list_shipped() == [info]
    assert (info.name, info.k, info.contrast) == ("tiny-k4", 4, "T1w")
    assert load_model("tiny-k4").sha256 == info.sha256
    # Another model, sound in itself, in its place: by name and by path it is not what the package pins.
    save_model(info.path, [make_network(seed=1).state_dict()], make_card())
    for key in ("tiny-k4", info.path):
        with pytest.raises(InputError, match="the package pins"):
            load_model(key)
    # A model of the same name replaces it.
    save_model(model_file, [make_network(seed=1).state_dict()], make_card())
    info = register_shipped(model_file)
    assert list_shipped() == [info] and load_model("tiny-k4").sha256 == info.sha256
    with pytest.raises(InputError, match="tiny-k4"):
        find_model("huge-k4")


def test_everything_in_the_index_of_this_package_loads():
    for info in list_shipped():
        model = load_model(info.name)
        assert (model.card["name"], model.k, model.card["contrast"]) == (info.name, info.k, info.contrast)
