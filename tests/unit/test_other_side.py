"""A place given the other breast: against quadrature, closed forms, and what follows from missing sides."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from rayad import storage
from rayad.datasets.exam import source_of
from rayad.datasets.phantom import Dataset
from rayad.datasets.sides import with_other_sides
from rayad.density import gaussian_mixture, spn
from rayad.density.em import EM, fit
from rayad.errors import DatasetError, FormatError, OptionError
from rayad.evaluation.metrics import auroc
from rayad.heatmaps.answers import Result
from rayad.heatmaps.drawing import Written
from rayad.heatmaps.images import HeatmapRequest, asked_of
from rayad.imaging.mammogram import Preprocessing
from rayad.imaging.picture import Prepared
from rayad.pipeline.calibrate import calibrate_detectors
from rayad.pipeline.detectors import asked
from rayad.pipeline.heatmap import write_heatmaps
from rayad.pipeline.pair import pair_detector
from rayad.pipeline.requests import DensityRequest
from rayad.pool import Here
from rayad.scoring import bundle
from rayad.scoring.calibrate import calibrate
from rayad.scoring.check import faults
from rayad.scoring.detector import Detector
from rayad.scoring.other_side import asymmetry, given_other, means_around
from rayad.scoring.scores import LatentScore, ModelScore
from tests.untrained import parts

M, K = 3, 1
MLO = HeatmapRequest(0.8, "MLO", 6.4)
PHANTOMS = Dataset(patients=12, diseased=0.25, height=256, width=192, spacing_mm=0.8)


def normal_pairs(n: int, seed: int, rho: float = 0.8) -> torch.Tensor:
    """z, z' and c: a share of each woman's own in both sides, another of the place."""
    random = torch.Generator().manual_seed(seed)
    woman, place, here, there = (torch.randn(n, M, generator=random) for _ in range(4))
    c = place[:, :1]
    sides = [rho**0.5 * woman + (1 - rho) ** 0.5 * own + 0.5 * c for own in (here, there)]
    return torch.cat([*sides, c], 1)


def truth(rho: float = 0.8) -> np.ndarray:
    """Covariance of `normal_pairs`."""
    one = np.eye(M) + 0.25
    return np.block(
        [
            [one, rho * np.eye(M) + 0.25, np.full((M, K), 0.5)],
            [rho * np.eye(M) + 0.25, one, np.full((M, K), 0.5)],
            [np.full((K, M), 0.5), np.full((K, M), 0.5), np.eye(K)],
        ]
    )


def log_p(rows: torch.Tensor, columns: list[int]) -> np.ndarray:
    """Closed form, of some of the variables."""
    covariance = truth()[np.ix_(columns, columns)]
    return np.atleast_1d(stats.multivariate_normal(np.zeros(len(columns)), covariance).logpdf(rows[:, columns].numpy()))


def split(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    z, others, c = rows.split([M, M, K], 1)
    return z, others, c


Z, OTHER, PLACE = [0, 1, 2], [3, 4, 5], [6]


@pytest.fixture(scope="module")
def gaussian():
    density = gaussian_mixture.Config(1, regularization=1e-6).build(2 * M + K)
    density.learn(normal_pairs(20_000, 0).double(), normal_pairs(100, 1).double(), 0)
    return density


@pytest.fixture(scope="module")
def circuit():
    """One that was started from few rows: any parameters will do."""
    density = spn.Config(inputs=3, replicas=2).build(3)
    density.start(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)).cumsum(1), 0)
    return density.double()


def test_the_conditional_of_a_circuit_is_that_of_quadrature(circuit):
    line = torch.linspace(-20, 20, 201).double()  # a sum of Gaussians that are wider than the steps: exact

    def p(z: torch.Tensor, others: torch.Tensor, c: float) -> np.ndarray:
        z, others = (side.flatten() for side in torch.broadcast_tensors(z[:, None], others[None]))
        rows = torch.stack([z, others, torch.full_like(z, c)], 1)
        return circuit.log_prob(rows).exp().numpy()

    for z, other, c in [(0.3, -0.2, 1.0), (-2.0, 1.5, 0.1)]:
        row = torch.tensor([[z, other, c]], dtype=torch.float64).split(1, 1)
        z_only, other_only = (torch.tensor([value], dtype=torch.float64) for value in (z, other))
        step = 0.2
        given = p(z_only, other_only, c)[0] / (step * p(line, other_only, c).sum())
        assert float(given_other(circuit, *row)) == pytest.approx(-np.log(given), abs=1e-6)
        alone = step * p(z_only, line, c).sum() / (step**2 * p(line, line, c).sum())
        assert float(asymmetry(circuit, *row)) == pytest.approx(np.log(alone) - np.log(given), abs=1e-6)


@pytest.mark.parametrize("density", ["gaussian", "circuit"])
def test_without_the_other_side_it_is_the_marginal_and_there_is_no_asymmetry(density, request):
    density = request.getfixturevalue(density)
    rows = normal_pairs(20, 2).double()
    size = M if density.__class__.__name__ == "Mixture" else 1
    z, others, c = rows[:, :size], torch.full((20, size), torch.nan).double(), rows[:, -1:]
    missing = torch.full_like(z, torch.nan)
    expected = density.log_prob(torch.cat([missing, others, c], 1)) - density.log_prob(torch.cat([z, others, c], 1))
    torch.testing.assert_close(given_other(density, z, others, c), expected)
    assert torch.equal(asymmetry(density, z, others, c), torch.zeros(20).double())
    nowhere = given_other(density, z, others, torch.full_like(c, torch.nan))
    torch.testing.assert_close(nowhere, -density.log_prob(torch.cat([z, others, c * torch.nan], 1)))


def test_a_gaussian_comes_to_the_closed_form(gaussian):
    rows = normal_pairs(500, 3).double()
    expected = log_p(rows, OTHER + PLACE) - log_p(rows, Z + OTHER + PLACE)
    assert given_other(gaussian, *split(rows)).numpy() == pytest.approx(expected, abs=0.15)
    alone = log_p(rows, PLACE) - log_p(rows, Z + PLACE)
    assert asymmetry(gaussian, *split(rows)).numpy() == pytest.approx(expected - alone, abs=0.15)


def test_missing_values_of_a_mixture_are_integrated_out():
    density = gaussian_mixture.Config(3, regularization=1e-3).build(4)
    z = torch.randn(300, 4, generator=torch.Generator().manual_seed(5)).double().cumsum(1)
    density.learn(z, z, 0)
    missing = z[:5].clone()
    missing[0, 1], missing[1, :3], missing[2] = torch.nan, torch.nan, torch.nan
    found = density.log_prob(missing)
    grid = torch.linspace(-40, 40, 4001).double()
    rows = missing[:1].repeat(len(grid), 1)
    rows[:, 1] = grid
    assert float(found[0]) == pytest.approx(np.log(np.trapezoid(density.log_prob(rows).exp(), grid)), abs=1e-6)
    assert float(found[2]) == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(found[3:], density.log_prob(z[3:5]))


def test_a_circuit_finds_what_is_on_one_side_alone_and_loses_it_with_the_sides_of_others():
    """What is usual in these women but not in this one: as high as healthy, on one side."""
    config = spn.Config(first=M, replicas=1, inputs=30)
    density = config.build(2 * M + K)
    fit(density, normal_pairs(4000, 6, 0.95), normal_pairs(500, 7, 0.95), EM(epochs=40))
    rows = normal_pairs(2000, 8, 0.95)
    lesion = np.arange(2000) < 300
    rows[lesion, 0] += 1.5
    z, others, c = split(rows)
    strangers = others.roll(1000, 0)
    without = torch.full_like(others, torch.nan)
    alone, own, another = (
        auroc(given_other(density, z, side, c).double().numpy(), lesion) for side in (without, others, strangers)
    )
    assert own > alone + 0.05
    assert another < alone
    assert auroc(asymmetry(density, z, others, c).double().numpy(), lesion) > 0.8


def test_means_are_those_of_the_places_within_8_mm():
    tissue = np.ones((6, 7), bool)
    tissue[2, 3] = False
    indices = np.argwhere(tissue)
    latents = torch.randn(len(indices), 2, generator=torch.Generator().manual_seed(0))
    means = means_around(latents, tissue, 3.2)
    for number, place in enumerate(indices):
        near = np.hypot(*(indices - place).T) * 3.2 <= 8
        torch.testing.assert_close(means[number], latents[torch.from_numpy(near)].mean(0))


@pytest.fixture(scope="module")
def trained() -> Detector:
    provenance = {"made_of": "cae", "corpus": "none", "dataset": "phantom", "seed": 0, "commit": "", "versions": {}}
    model, _ = parts()
    return Detector("cae", ModelScore(model, "reconstruction"), Preprocessing(spacing_mm=0.8), provenance=provenance)


REQUEST = DensityRequest("spn", ("first=6", "replicas=1", "inputs=5"), context=("skin_mm", "rel_row"), em=EM(epochs=3))


@pytest.fixture(scope="module")
def paired(trained, tmp_path_factory) -> tuple[Detector, str]:
    url = str(tmp_path_factory.mktemp("paired") / "detector")
    return pair_detector(Here(), "cae-other", trained, PHANTOMS, REQUEST, 6.4, url), url


def image(number: int = 0) -> Prepared:
    exam = with_other_sides(PHANTOMS.exams())[number]
    return Preprocessing(spacing_mm=0.8).prepare(source_of(PHANTOMS, exam))


def test_a_stage_makes_a_bundle_that_scores_a_pair_and_is_not_made_again(trained, paired):
    detector, url = paired
    assert detector.both_sides
    assert faults(url) == []
    loaded = pair_detector(Here(), "cae-other", trained, PHANTOMS, REQUEST, 6.4, url)
    assert storage.read_json(f"{url}/detector.json")["provenance"]["made_of"] == loaded.provenance["made_of"]
    assert not any(name.startswith("pairs-") for name in map(str, storage.listing(url)))
    one = image()
    scores = detector.heatmap(one, 8).scores
    assert np.array_equal(bundle.load(url).heatmap(one, 8).scores, scores, equal_nan=True)
    alone = detector.heatmap(replace(one, other=None), 8).scores
    unlike = asked(detector, "asymmetry", "asymmetry").heatmap(one, 8).scores
    assert unlike == pytest.approx(scores - alone, abs=1e-3, nan_ok=True)
    assert np.nanstd(unlike) > 0


def test_images_of_a_data_set_come_with_their_other_side(paired, tmp_path):
    detector, _ = paired
    (calibrated,) = calibrate_detectors(Here(), [detector], PHANTOMS, 6.4, str(tmp_path))
    exam = next(e for e in with_other_sides(PHANTOMS.exams()) if list(tmp_path.rglob(f"{e.exam_id}-*.npz")))
    prepared = detector.preprocessing.prepare(source_of(PHANTOMS, exam))
    kept = [np.load(file)["scores"] for file in tmp_path.rglob(f"cae-other-*/{exam.exam_id}-*.npz")]
    assert np.array_equal(kept[0], detector.heatmap(prepared, 8).scores, equal_nan=True)
    assert calibrated.calibration is not None


def test_a_table_says_which_image_shows_the_other_breast(paired, tmp_path):
    detector, _ = paired
    calibrated = detector.calibrated(calibrate({"a": [np.arange(4.0).reshape(2, 2)]}))
    rows = ["url,patient,laterality,view"]
    for exam in PHANTOMS.exams()[:3]:
        pixels = (PHANTOMS.pixels(exam) * 65535).astype(np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{exam.exam_id}.png")
        rows.append(f"{exam.exam_id}.png,{exam.patient_id},{exam.laterality},MLO")
    (tmp_path / "images.csv").write_text("\n".join(rows))
    table, request = str(tmp_path / "images.csv"), HeatmapRequest(0.8, "", 6.4)
    asked_for, _ = asked_of([table], request)
    assert [image.other and image.other.name[-6:] for image in asked_for] == ["0000-R", "0000-L", None]
    done = list(write_heatmaps(Here(), calibrated, [table], request, str(tmp_path / "out"), Written(picture=False)))
    alone = list(
        write_heatmaps(
            Here(), calibrated, [row.image for row in done], MLO, str(tmp_path / "alone"), Written(picture=False)
        )
    )
    assert [isinstance(row, Result) for row in (*done, *alone)] == [True] * 6
    assert [a.score == b.score for a, b in zip(done, alone, strict=True)] == [False, False, True]
    (tmp_path / "images.csv").write_text("\n".join([*rows[:2], rows[2].replace(",R,", ",both,")]))
    with pytest.raises(DatasetError, match=r"images\.csv: row 2: 'both' is no side"):
        asked_of([table], request)


def test_what_cannot_be_paired_is_refused(trained, paired, tmp_path):
    class Onesided(Dataset):
        def exams(self):
            return [replace(exam, laterality="") for exam in super().exams()]

    with pytest.raises(DatasetError, match=r"none of .* has one of the patient's other breast in the same view"):
        pair_detector(Here(), "x", trained, Onesided(patients=12), REQUEST, 6.4, str(tmp_path / "a"))
    for density, settings in (("spn", ("axes=principal",)), ("mahalanobis", ()), ("isolation_forest", ())):
        request = replace(REQUEST, density=density, settings=settings)
        with pytest.raises(OptionError, match=f"{density} with these settings cannot leave variables out"):
            pair_detector(Here(), "x", trained, PHANTOMS, request, 6.4, str(tmp_path / "a"))
    with pytest.raises(OptionError, match="smooth and classes are for densities of patches"):
        pair_detector(Here(), "x", trained, PHANTOMS, replace(REQUEST, smooth=True), 6.4, str(tmp_path / "a"))
    detector, _ = paired
    assert isinstance(detector.score, LatentScore)
    with pytest.raises(OptionError, match="the density is of 14 variables, but model and context give 8"):
        replace(detector.score, name="context")
    bundle.save(detector, str(tmp_path / "b"))
    description = storage.read_json(f"{tmp_path}/b/detector.json")
    storage.write_json(f"{tmp_path}/b/detector.json", description | {"score": "likelihood"})
    with pytest.raises(FormatError, match="'score': the density is of 14 variables"):
        bundle.load(str(tmp_path / "b"))
