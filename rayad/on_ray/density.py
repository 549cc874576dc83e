"""Latents to a density, by expectation-maximization on N workers whose statistics add."""

from typing import Any

import ray.train.torch
import torch

from rayad import catalog, storage
from rayad.checkpoints import Folder
from rayad.density.em import EM, fit
from rayad.on_ray.encode import encode, read_latents
from rayad.on_ray.resources import Workers
from rayad.on_ray.workers import report, run, sync
from rayad.patches.corpus import Corpus, fingerprint
from rayad.progress import State
from rayad.scoring.detector import Part


def fit_density(
    corpus_url: str, model: Part, density: str, config: Any, em: EM, workers: Workers, url: str
) -> tuple[Part, dict[str, Any]]:
    """Fit a density to the latents of a corpus's healthy training patches; interrupted, it goes on from the last epoch.

    Args:
        url: folder for the latents; they are encoded once and kept for other densities of the same model.

    Returns:
        The density, and what is worth knowing of its training: epochs, bits a dimension, warnings.

    Raises:
        OptionError: unknown density, or settings it refuses.
        TrainingError: latents that are not numbers.
    """
    catalog.find("density", density)
    corpus = Corpus.open(corpus_url)
    encode(corpus, model, url)
    result = storage.join(url, density)
    task = {"corpus": corpus_url, "latents": url, "config": config, "em": em, "result": result}
    task["checkpoints"] = storage.join(result, f"learning-{fingerprint([config, em])}")
    run(_loop, task, workers, storage.join(url, "ray"), em.epochs, f"fitting {density}")
    state = Folder(result).load()
    assert state is not None  # rank 0 saved it
    storage.remove(task["checkpoints"])
    variables = read_latents(corpus, url, "validation").shape[1]
    module = config.build(variables)
    module.load_state_dict(state.tensors)
    return Part(density, config, module.eval(), variables), state.scalars


def _loop(task: dict[str, Any]) -> None:
    """One worker's part of `fit_density`: every worker holds all latents and sums over its share of the rows."""
    torch.set_num_threads(1)
    corpus, us, device = Corpus.open(task["corpus"]), sync(), ray.train.torch.get_device()
    latents = {s: read_latents(corpus, task["latents"], s).to(device) for s in ("train", "validation")}
    density = task["config"].build(latents["train"].shape[1]).to(device)
    history = fit(
        density,
        latents["train"],
        latents["validation"],
        task["em"],
        sync=us,
        checkpoints=Folder(task["checkpoints"]),
        report=lambda row: report(task, row),
    )
    if us.rank == 0:
        said = {"best": history.best, "epochs": len(history.rows), "warnings": list(history.warnings)}
        Folder(task["result"]).save(State(density.state_dict(), said))
