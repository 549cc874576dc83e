"""Bundles that a stranger made: each is refused in a sentence, before it takes memory or leaves its own folder."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memory
import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from rayad import catalog, cli, storage
from rayad.errors import OptionError, RayadError
from rayad.imaging.mammogram import Preprocessing
from rayad.scoring import bundle, floors
from rayad.scoring.calibrate import Calibration, calibrate
from rayad.scoring.check import faults
from rayad.scoring.detector import Combined, Detector
from rayad.scoring.scores import Floor, LatentScore, ModelScore, Part, scores_of
from rayad.scoring.taught import Logistic, Teaching
from rayad.serving import cards

Edit = Callable[[dict[str, Any]], Any]
MOST_BYTES = 1_000_000_000
"""Of memory that reading any of these may take, torch's own libraries included."""


def healthy() -> Calibration:
    return calibrate({"a": [np.random.default_rng(0).random((9, 9))]})


def floor(name: str) -> Detector:
    return Detector(name, Floor("brightness"), Preprocessing(), calibration=healthy(), provenance={"made_of": "test"})


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    """A small detector with a model, a circuit and a calibration."""
    torch.manual_seed(0)
    model = catalog.configure("models", "cae", {"width": 4, "latents": 6})
    config = catalog.configure("density", "spn", {"inputs": 3, "replicas": 2})
    circuit = config.build(6)
    circuit.start(torch.randn(50, 6), 0)
    parts = Part("cae", model, model.build().eval()), Part("spn", config, circuit.eval(), 6)
    url = tmp_path_factory.mktemp("good")
    origin = {"made_of": "test"}
    bundle.save(Detector("d", LatentScore(*parts), Preprocessing(), calibration=healthy(), provenance=origin), str(url))
    return of_schema_2(url)


@pytest.fixture(scope="module")
def combined(tmp_path_factory) -> Path:
    url = tmp_path_factory.mktemp("combined")
    members = (floor("one"), floor("two"))
    bundle.save(
        Detector("both", Combined("fisher", members), Preprocessing(), provenance={"made_of": "test"}), str(url)
    )
    return of_schema_2(url)


def of_schema_2(url: Path) -> Path:
    """A bundle as it was written before names of files had hashes: a stranger's may be, and it is simpler to alter."""
    said = json.loads((url / "detector.json").read_text())
    for kind, sha256 in said["sha256"].items():
        if kind.startswith("members/"):
            of_schema_2((url / f"{kind}-{sha256[:16]}").rename(url / kind))
        else:
            (url / f"{kind}-{sha256[:16]}.safetensors").rename(url / f"{kind}.safetensors")
    hashes = {kind: sha256 for kind, sha256 in said["sha256"].items() if "/" not in kind}
    (url / "detector.json").write_text(json.dumps(said | {"schema": 2, "sha256": hashes}))
    return url


def edited(source: Path, target: Path, edit: Edit, files: dict[str, bytes] | None = None) -> str:
    """A copy of a bundle whose description was edited, with other tensor files and their right hashes."""
    shutil.copytree(source, target)
    description = json.loads((target / "detector.json").read_text())
    for kind, data in (files or {}).items():
        (target / f"{kind}.safetensors").write_bytes(data)
        description["sha256"][kind] = hashlib.sha256(data).hexdigest()
    edit(description)
    (target / "detector.json").write_text(json.dumps(description))
    return str(target)


def put(path: str, value: Any) -> Edit:
    """Set a field, such as model.config.width."""

    def edit(description: dict[str, Any]) -> None:
        *above, last = path.split(".")
        for name in above:
            description = description[name]
        description[last] = value

    return edit


def leave(description: dict[str, Any]) -> None:
    """Edit nothing."""


def refusal(url: str) -> str:
    """The one sentence with which a bundle is refused, by loading it and by `rayad check`."""
    with pytest.raises(RayadError) as caught:
        bundle.load(url)
    with contextlib.suppress(RayadError):
        assert faults(url)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) < 700
    return sentence


def tensor_file(entries: dict[str, Any], size: int = 0) -> bytes:
    """A safetensors file with this header and so many zeros behind it."""
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + b"\0" * size


FIELDS = [
    ("schema", "2", "'schema' is a whole number, not '2'"),
    ("schema", 0, "schemas are 1 to 5"),
    ("name", ["x"], "'name' of detector.json is a text, not \\['x'\\]"),
    ("score", {"a": 1}, "'score' of detector.json is a text"),
    ("score", "magic", "no score 'magic'"),
    ("preprocessing.spacing_mm", 0, "'preprocessing': spacing_mm must be between 0.01 and 100, not 0"),
    ("preprocessing.spacing_mm", 1e300, "spacing_mm must be between"),
    ("preprocessing.spacing_mm", "0.4", "spacing_mm is a number, not '0.4'"),
    ("preprocessing.surround_mm", 10**12, "surround_mm must be between"),
    ("preprocessing.colour", "blue", "there is no field 'colour', only spacing_mm"),
    ("preprocessing.kind", ["square"], "is a text, not \\['square'\\]"),
    ("preprocessing", {"kind": "square", "side_px": 10**6}, "side_px must be between 32 and 8,192"),
    ("patch_px", "64", "'patch_px' of detector.json is a whole number, not '64'"),
    ("patch_px", 128, "'patch_px' is 128, but the score is of patches of 64 px"),
    ("model.config.patch_px", 100, "patch_px must be a multiple of 8 between 32 and 256, not 100"),
    ("model.config.patch_px", 128, "model.safetensors: does not fit cae of detector.json: .* size mismatch"),
    ("aggregation.size_mm", -1, "'aggregation': size_mm must be between 0 and 100, not -1"),
    ("aggregation.kind", "median", "no aggregation 'median'"),
    ("model", {"name": "cae"}, "'model': it has name, config"),
    ("model.name", "__init__", "no model '__init__'"),
    ("model.config.width", "4", "'model': width is a whole number, not '4'"),
    ("model.config.width", True, "width is a whole number, not True"),
    ("model.config.width", -4, "width must be between 1 and 65,536, not -4"),
    ("model.config.width", 10**9, "width is at most 65,536 for as many numbers as there are"),
    ("model.config.width", 5, "model.safetensors: does not fit cae of detector.json: .* size mismatch"),
    ("model.config.padding", ["valid"], "padding is valid or same"),
    ("model.config.colour", {"a": {}}, "there is no field 'colour'"),
    ("density.variables", 7, "density.safetensors: does not fit spn"),
    ("density.variables", 10**7, "variables are 0 to 65,536, not 10000000"),
    ("density.variables", -1, "variables are 0 to 65,536"),
    ("density.config.states", [3] * 70_000, "states is a list of at most 65,536 items"),
    ("density.config.states", [3] * 6, "does not fit spn"),
    ("density.config.states", [0, 0, 0, 0, 0, 3], "does not fit spn"),
    ("score", "novelty", "'score': spn has no novelty"),
    ("context", ["skin_mm"], "the density is of 6 variables, but model and context give 7"),
    ("context", ["phase_of_the_moon"], "'context' has different names of skin_mm"),
    ("context", [["skin_mm"]], "'context' has different names"),
    ("members", "one", "'members' of detector.json is a list"),
    ("sha256", {"model": 3}, "'sha256' has 64 hexadecimal digits for each file"),
    ("sha256", {}, "no hash of model.safetensors"),
    ("provenance.made_of", {"a": 1}, "made_of of 'provenance' is a text"),
    ("provenance.train_minutes", "long", "train_minutes of 'provenance' is a whole number or a number"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), FIELDS)
def test_a_field_that_is_none_is_named_with_its_file(good, tmp_path, path, value, sentence):
    url = edited(good, tmp_path / "bundle", put(path, value))
    found = refusal(url)
    assert found.startswith(url)
    assert re.search(sentence, found)


@pytest.mark.parametrize("text", ['{"schema": NaN}', "[" * 200_000, '{"schema": 2, "schema": ' + "[]" * 9, "[2]", ""])
def test_a_description_that_is_no_object_of_json_is_refused(good, tmp_path, text):
    url = edited(good, tmp_path / "bundle", leave)
    (tmp_path / "bundle/detector.json").write_text(text)
    assert refusal(url).startswith(f"{url}/detector.json")


NAMES = ["..", "../..", ".", "a/b", "/etc", "", " ", "a\x1b[2Jb", "a\nb", "\u202eb", "x" * 101, 7, None, ["a"], "a\\b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_member_has_a_plain_name(combined, tmp_path, name):
    url = edited(combined, tmp_path / "bundle", put("members", ["one", name]))
    assert "a member's name is up to 100 letters" in refusal(url)
    assert refusal(url).isprintable()


def test_members_have_names_of_their_own_that_are_their_folders(combined, tmp_path):
    twice = edited(combined, tmp_path / "twice", put("members", ["one", "one"]))
    assert "two members have the same name" in refusal(twice)
    (tmp_path / "other").mkdir()
    renamed = edited(combined, tmp_path / "renamed", leave)
    edited(combined / "members/one", tmp_path / "renamed/members/three", put("name", "four"))
    edited(combined, tmp_path / "again", put("members", ["three", "two"]))
    shutil.copytree(tmp_path / "renamed/members/three", tmp_path / "again/members/three")
    assert "member three calls itself 'four'" in refusal(str(tmp_path / "again"))
    assert bundle.load(renamed).members[0].name == "one"


def test_a_detector_whose_members_could_not_be_kept_is_not_made():
    with pytest.raises(OptionError, match="letters, digits, blanks"):
        Combined("fisher", (floor("one"), floor("../two")))
    with pytest.raises(OptionError, match="these are 65 members in 1 levels; a bundle has at most 64 in 4"):
        Combined("fisher", tuple(floor(f"m{i}") for i in range(65)))
    with pytest.raises(OptionError, match="two members have the same name"):
        Combined("fisher", (floor("one"), floor("one")))


def test_what_labels_taught_is_checked_as_everything_else(combined, tmp_path):
    teaching = Teaching(Logistic(np.array([0.5, -0.5]), np.zeros(1)))
    arrays = teaching.to_tensors()

    def taught(name: str, score: str = "logistic", **change: np.ndarray) -> str:
        data = safetensors.numpy.save(arrays | change)
        return edited(combined, tmp_path / name, put("score", score), {"taught": data})

    loaded = bundle.load(taught("good"))
    assert loaded.teaching is not None
    assert loaded.teaching.kind == "logistic"
    assert faults(str(tmp_path / "good")) == []
    assert "not finite" in refusal(taught("nan", weights=np.array([np.nan, 0.0])))
    assert "is of 3 detectors, and 2 are there" in refusal(taught("three", weights=np.zeros(3)))
    assert "'more' is not as it should be" in refusal(taught("more", more=np.zeros(1)))
    assert "'bias' is not as it should be" in refusal(taught("forest", "forest"))
    assert "needs no taught.safetensors" in refusal(taught("fisher", "fisher"))
    assert "has no hash of taught.safetensors" in refusal(edited(combined, tmp_path / "none", put("score", "boosting")))
    latents = {"latent_mean": np.zeros(4), "latent_axes": np.zeros((4, 2)), "weights": np.zeros(4)}
    assert "none of one, two has a model with latents" in refusal(taught("latents", **latents))


def test_a_bundle_has_at_most_64_members_in_4_levels(combined, tmp_path):
    names = [f"m{i}" for i in range(65)]
    url = edited(combined, tmp_path / "bundle", put("members", names))
    for name in names:
        edited(combined / "members/one", tmp_path / "bundle/members" / name, put("name", name))
    assert "at most 64 members in 4 levels" in refusal(url)
    description = json.loads((tmp_path / "bundle/detector.json").read_text()) | {"members": names[:64]}
    (tmp_path / "bundle/detector.json").write_text(json.dumps(description))
    assert len(bundle.load(url).members) == 64


def test_a_member_that_is_the_bundle_itself_ends(combined, tmp_path):
    url = edited(combined, tmp_path / "bundle", put("name", "one"))
    shutil.rmtree(tmp_path / "bundle/members/one")
    (tmp_path / "bundle/members/one").symlink_to("..")
    assert "at most 64 members in 4 levels" in refusal(url)


def out_by_description(folder: Path, elsewhere: Path) -> None:
    (elsewhere / "detector.json").write_bytes((folder / "detector.json").read_bytes())
    (folder / "detector.json").unlink()
    (folder / "detector.json").symlink_to(elsewhere / "detector.json")


def out_by_tensors(folder: Path, elsewhere: Path) -> None:
    (folder / "calibration.safetensors").rename(elsewhere / "calibration.safetensors")
    (folder / "calibration.safetensors").symlink_to("../elsewhere/calibration.safetensors")


def out_by_member(folder: Path, elsewhere: Path) -> None:
    (folder / "members/one").rename(elsewhere / "one")
    (folder / "members/one").symlink_to(elsewhere / "one")


def out_by_members(folder: Path, elsewhere: Path) -> None:
    (folder / "members").rename(elsewhere / "members")
    (folder / "members").symlink_to("../elsewhere/members")


@pytest.mark.parametrize("lead_out", [out_by_description, out_by_tensors, out_by_member, out_by_members])
def test_no_link_leads_out_of_a_bundle(good, combined, tmp_path, lead_out):
    source = good if lead_out is out_by_tensors else combined
    url = edited(source, tmp_path / "bundle", leave)
    (tmp_path / "elsewhere").mkdir()
    lead_out(tmp_path / "bundle", tmp_path / "elsewhere")
    assert "a link leads there" in refusal(url)
    with pytest.raises(RayadError, match="a link leads there"):
        cards.served("d", url)


def test_a_bundle_may_be_a_link_and_have_links_within(good, tmp_path):
    edited(good, tmp_path / "bundle", leave)
    (tmp_path / "bundle/model.safetensors").rename(tmp_path / "bundle/weights")
    (tmp_path / "bundle/model.safetensors").symlink_to("weights")
    (tmp_path / "link").symlink_to("bundle")
    assert bundle.load(str(tmp_path / "link")).name == "d"
    assert faults(str(tmp_path / "link")) == []
    assert cards.served("d", str(tmp_path / "link")).card.name == "d"


def test_a_pipe_and_a_device_in_the_place_of_a_file_are_refused(good, tmp_path):
    for number, make in enumerate((os.mkfifo, lambda path: os.symlink("/dev/zero", path))):
        url = edited(good, tmp_path / str(number), leave)
        os.unlink(f"{url}/detector.json")
        make(f"{url}/detector.json")
        refusal(url)


def test_nothing_of_a_bundle_on_an_object_store_lies_outside_of_it(combined):
    for file in combined.rglob("*.*"):
        storage.write_bytes(f"memory://bundles/good/{file.relative_to(combined)}", file.read_bytes())
    assert len(bundle.load("memory://bundles/good").members) == 2
    description = storage.read_json("memory://bundles/good/detector.json")
    storage.write_json("memory://bundles/bad/detector.json", description | {"members": ["../../good", "one"]})
    assert "a member's name is" in refusal("memory://bundles/bad")


ZEROS = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
HEADERS = [
    (b"", "is not a safetensors file"),
    (b"\xff" * 20, "is not a safetensors file"),
    (struct.pack("<Q", 5) + b"{{{{{", "is not JSON"),
    (struct.pack("<Q", 2_000_000) + b" " * 2_000_000, "at most 1 MB"),
    (tensor_file({"x": ZEROS}), "another number of bytes than its header says"),
    (tensor_file({"x": ZEROS}, 13), "another number of bytes"),
    (tensor_file({"x": ZEROS | {"shape": [-3]}}, 12), "has no type or shape that rayad writes"),
    (tensor_file({"x": ZEROS | {"shape": [2**62, 2**62]}}, 12), "has no type or shape"),
    (tensor_file({"x": ZEROS | {"shape": [0, 10**30]}}, 0), "has no type or shape"),
    (tensor_file({"x": ZEROS | {"shape": "3"}}, 12), "has no type or shape"),
    (tensor_file({"x": ZEROS | {"dtype": ["F32"]}}, 12), "has no type or shape"),
    (tensor_file({"x": ZEROS | {"dtype": "C64"}}, 24), "has no type or shape"),
    (tensor_file({"x": [1]}, 12), "has no type or shape"),
    (tensor_file({"x": ZEROS, "y": ZEROS}, 24), "does not fit cae"),
]


@pytest.mark.parametrize(("data", "sentence"), HEADERS)
def test_a_tensor_file_that_is_none_is_refused(good, tmp_path, data, sentence):
    url = edited(good, tmp_path / "bundle", leave, {"model": data})
    found = refusal(url)
    assert found.startswith(f"{url}/model.safetensors")
    assert sentence in found


def spoiled(good: Path, kind: str, spoil: Callable[[dict[str, torch.Tensor]], Any]) -> dict[str, bytes]:
    state = safetensors.torch.load_file(good / f"{kind}.safetensors")
    spoil(state)
    return {kind: safetensors.torch.save(state)}


def grow(name: str, by: float) -> Callable[[dict[str, torch.Tensor]], Any]:
    return lambda state: state[name].reshape(-1)[-1:].add_(by)


CALIBRATIONS = [
    (lambda state: state.pop("levels"), "arrays levels are missing"),
    (grow("survival", torch.nan), "survival holds numbers that are not finite"),
    (lambda state: state.update(survival=state["survival"].flip(0)), "survival is not ascending"),
    (lambda state: state.update(survival=state["survival"][None]), "survival is a row of numbers"),
    (lambda state: state.update(survival=state["survival"][1:].clone()), "do not fit"),
    (lambda state: state.update(quantiles=state["quantiles"][1:].clone()), "levels and quantiles have different sizes"),
    (lambda state: state.update(exam_scores=torch.zeros(0)), "exam_scores is a row of numbers"),
    (lambda state: state.update(exam_scores=torch.tensor([True])), "exam_scores is a row of numbers"),
    (lambda state: state.update(top=torch.tensor([7.0])), "top are shares"),
    (lambda state: state.update(patients=torch.tensor([2])), "2 patients do not fit"),
    (grow("levels", 1), "levels are shares"),
]


@pytest.mark.parametrize(("spoil", "sentence"), CALIBRATIONS)
def test_a_calibration_that_no_patients_gave_is_refused(good, tmp_path, spoil, sentence):
    url = edited(good, tmp_path / "bundle", leave, spoiled(good, "calibration", spoil))
    assert sentence in refusal(url)


PARTS = [
    ("density", grow("leaves.scopes", 10**6), "scopes must be numbers of variables, 0 to 6"),
    ("density", grow("leaves.scopes", -(10**6)), "scopes must be numbers of variables"),
    ("density", lambda state: state.update({"leaves.mean": state["leaves.mean"].half()}), "is of torch.float16"),
    ("density", lambda state: state.update({"leaves.scopes": state["leaves.scopes"].double()}), "is of torch.float64"),
    ("density", lambda state: state.update({"leaves.mean": state["leaves.mean"].bool()}), "is of torch.bool"),
    ("model", lambda state: state.pop("encoder.head.bias"), "'encoder.head.bias' is missing"),
    ("model", grow("encoder.head.bias", torch.inf), "holds numbers that are not finite"),
]


@pytest.mark.parametrize(("kind", "spoil", "sentence"), PARTS)
def test_tensors_that_are_none_of_the_part_are_refused(good, tmp_path, kind, spoil, sentence):
    url = edited(good, tmp_path / "bundle", leave, spoiled(good, kind, spoil))
    with pytest.raises(RayadError, match=sentence):
        bundle.load(url)


def test_a_tree_whose_nodes_are_nowhere_is_refused_and_one_that_goes_in_circles_ends():
    config = catalog.configure("density", "isolation_forest", {"trees": 2, "samples": 20})
    forest = config.build(3)
    forest.learn(torch.randn(40, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(0, 3), 0)
    state = forest.state_dict()
    for name, value in (("left", 1e9), ("right", -1.0), ("variable", 3.0), ("left", 0.5)):
        with pytest.raises(RayadError, match=f"{name} of a forest's nodes"):
            config.build(3).load_state_dict(state | {name: torch.full_like(state[name], value)})
    circle = {"left": torch.ones_like(state["left"]), "right": torch.zeros_like(state["right"])}
    circle["left"][:, 1], circle["variable"] = 0, torch.zeros_like(state["variable"])
    other = config.build(3)
    other.load_state_dict(state | circle)
    assert other.novelty(torch.randn(4, 3)).shape == (4,)


def learned(name: str, variables: int) -> Any:
    """A density of every kind, small, that has learned."""
    density = catalog.find("density", name).Config().build(variables)
    z = torch.randn(60, variables, generator=torch.Generator().manual_seed(0)).double()
    density.learn(z, z[:5], 0) if hasattr(density, "learn") else density.start(z.float(), 0)
    return density.eval()


def every_part() -> Iterator[tuple[str, str, Any, Any, int]]:
    """Kind, name, configuration, module and variables of every model and density, and of circuits with codes."""
    for name in catalog.names("models"):
        config = catalog.find("models", name).Config()
        yield "model", name, config, config.build().eval(), 0
    for name in catalog.names("density"):
        yield "density", name, catalog.find("density", name).Config(), learned(name, 6), 6
    for states in ((3, 2, 5, 3, 3, 3), (0, 0, 4, 0, 0, 2)):
        config = catalog.configure("density", "spn", {"inputs": 2, "replicas": 3, "depth": 2, "states": states})
        yield "density", "spn", config, config.build(6).eval(), 6


def test_every_model_and_density_survives_a_bundle(good, tmp_path):
    trained = bundle.load(str(good))
    assert trained.model is not None
    for number, (kind, name, config, module, variables) in enumerate(every_part()):
        url = str(tmp_path / str(number))
        part = Part(name, config, module, variables)
        if kind == "model":
            score = ModelScore(part, scores_of(part)[0])
        else:
            score = LatentScore(trained.model, part, "novelty" if hasattr(module, "novelty") else "likelihood")
        bundle.save(Detector(name, score, trained.preprocessing), url)
        part = getattr(bundle.load(url), kind)
        assert part.config == config, name
        assert part.variables == variables, name
        for key, value in module.state_dict().items():
            assert torch.equal(part.module.state_dict()[key], value), (name, key)
    assert len(floors.MAPS) > 0


def test_a_name_that_moves_the_cursor_is_printed_as_an_escape(good, tmp_path, capfd):
    url = edited(good, tmp_path / "bundle", put("name", "\x1b[2J\u202ename\r\n"))
    assert cli.run(["check", "--detector", url]) == 0
    said = capfd.readouterr()
    assert "\\x1b[2J\\u202ename\\r\\n scores by likelihood" in said.out
    assert all(line.isprintable() for line in (said.out + said.err).splitlines())


MEASURE = """
import json, resource, sys, time
from rayad.errors import RayadError
from rayad.scoring import bundle
for url in sys.argv[1:]:
    began = time.perf_counter()
    try:
        bundle.load(url)
        said = "loaded"
    except RayadError as error:
        said = str(error)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps([url, said, peak, time.perf_counter() - began]), flush=True)
"""


def greedy(good: Path, folder: Path) -> Iterator[str]:
    """Bundles of a few kB that ask for as much as they can."""
    most = 65_536
    edits: list[Edit] = [
        put("density.variables", 10**7),
        put("density.variables", most),
        lambda d: d["density"].update(variables=most, config=d["density"]["config"] | {"replicas": 64}),
        lambda d: d["density"].update(variables=most, config=d["density"]["config"] | {"replicas": 4, "depth": 16}),
        lambda d: d["density"].update(variables=most, config={"states": [most] * most, "inputs": most}),
        lambda d: d["density"].update(variables=1000, config={"states": [most] * 1000}),
        lambda d: d["density"].update(variables=1000, config={"states": [0, *[most] * 999]}),
        lambda d: d["density"].update(config={"inputs": most, "sums": most, "roots": most, "depth": 2}),
        put("density", {"name": "deep_belief_network", "config": {"hidden": [most] * most}, "variables": most}),
        put("density", {"name": "self_organizing_map", "config": {"rows": most}, "variables": most}),
        put("model.config.width", 10**9),
        put("model.config", {"width": most, "latents": most}),
        put("model", {"name": "vqvae", "config": {"blocks": 1000, "width": most, "codes": most}, "variables": 0}),
        put("model", {"name": "implicit_field", "config": {"depth": 1000, "hidden": most}, "variables": 0}),
        put("model", {"name": "pca", "config": {"side": 64, "channels": 3, "components": 12_288}, "variables": 0}),
        put("model", {"name": "lbp", "config": {"radii": [1] * most}, "variables": 0}),
        put("model", {"name": "mddpm", "config": {"width": most, "channels": 3}, "variables": 0}),
        put("model", {"name": "fanogan", "config": {"width": most}, "variables": 0}),
        put(
            "model", {"name": "conditional_vae", "config": {"classes": " ".join(map(str, range(2000)))}, "variables": 0}
        ),
        put("provenance.faults", [[[]] for _ in range(600_000)]),
    ]
    for number, edit in enumerate(edits):
        yield edited(good, folder / f"field-{number}", edit)
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield edited(good, folder / "names", leave, {"model": tensor_file({f"{i}": entry for i in range(15_000)})})
    wide = {"x": {"dtype": "F64", "shape": [4_000_000_000], "data_offsets": [0, 32_000_000_000]}}
    yield edited(good, folder / "wide", leave, {"model": tensor_file(wide)})
    huge = edited(good, folder / "huge", leave)
    os.truncate(f"{huge}/model.safetensors", 5_000_000_000)  # sparse: it takes nothing of the disk
    yield huge


@pytest.mark.long
def test_no_bundle_takes_memory_that_its_tensors_do_not_justify(good, tmp_path):
    urls = list(greedy(good, tmp_path))
    done = memory.python(MEASURE, *urls)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [url for url, *_ in rows] == urls, done.stderr
    assert [url for url, said, *_ in rows if said == "loaded"] == [str(tmp_path / "field-19")]
    assert max(peak for *_, peak, _ in rows) < MOST_BYTES


def test_a_detector_that_does_not_say_what_it_was_made_of_is_a_sentence(good, tmp_path, capsys):
    url = edited(good, tmp_path / "bundle", put("provenance", {}))
    assert (
        cli.run(["rescore", "--detector", url, "--out", str(tmp_path / "out"), "--name", "n", "--score", "squared"])
        == 2
    )
    assert (
        capsys.readouterr().err == "rayad: detector 'd' has no made_of in its provenance, by which results are known\n"
    )


def test_a_description_of_gigabytes_is_not_read(good, tmp_path):
    url = edited(good, tmp_path / "bundle", leave)
    os.truncate(f"{url}/detector.json", 5_000_000_000)  # sparse
    assert "JSON of at most 4 MB is read" in refusal(url)
    with pytest.raises(RayadError, match="at most 4 MB"):
        cards.served("d", url)
