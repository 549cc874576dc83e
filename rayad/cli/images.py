"""Data sets: what they hold, and the patches that are learned from."""

from dataclasses import dataclass

from rayad import catalog, storage
from rayad.cli.shared import OfDataset, place
from rayad.datasets.exam import Excluded, read_by, reasons
from rayad.errors import DatasetError
from rayad.options import Amount, Count, Settings, Share
from rayad.outputs import claimed
from rayad.patches.corpus import Ingest
from rayad.patches.sample import Sampling
from rayad.terminal import say

NAMED = 10
"""Failures that are printed; manifest.json has all."""


@dataclass(frozen=True, kw_only=True)
class IngestCommand(OfDataset):
    """Make a patch corpus from the images of the healthy patients that models learn from."""

    out: str
    """Folder or URL of the corpus."""
    preprocessing: str = "mammogram"
    """Preparation of an image before patches are cut from it: mammogram, dermoscopy, square."""
    picture: Settings = ()
    """Fields of the preprocessing, such as spacing_mm=0.2 or intensity=relative."""
    sampling: Sampling = Sampling()
    shard_patches: Count = 4096
    """Patches a shard, about; a shard holds whole images."""
    max_failures: Share = 0.01
    """Share of images that may fail before the corpus is refused."""
    mixed: Share = 0.0
    """Share of the diseased development patients whose images are learned from too, as if they were healthy."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.ingest import write_corpus

        dataset = self.opened()
        preprocessing = catalog.configure("imaging", self.preprocessing, self.picture)
        settings = Ingest(preprocessing, self.sampling, self.shard_patches, self.max_failures, self.mixed)
        out = storage.absolute(self.out)
        with claimed(out, "a corpus", read_by(dataset)), connected(self.address) as pool:
            corpus = write_corpus(pool, *self.named(dataset), dataset, settings, out)
        manifest = corpus.manifest
        patches, images, failed = manifest["patches"], manifest["images"], len(manifest["failures"])
        say(f"{patches} patches of {images} images, {failed} failed: {self.out}")
        for failure in manifest["failures"][:NAMED]:
            say(f"failed: {failure['reason']}")
        for row in reasons(Excluded(entry["url"], entry["sentence"]) for entry in manifest.get("doubtful", ())):
            say(f"doubtful: {row['count']} x {row['reason']}, such as {row['example']}")
        for row in reasons(Excluded(**entry) for entry in manifest.get("excluded", ())):
            say(f"left out: {row['count']} x {row['reason']}")


@dataclass(frozen=True, kw_only=True)
class Inspect(OfDataset):
    """Make a page of what a data set holds: counts, failures, masks, intensities, images that are in it twice."""

    out: str
    """Folder or URL of the page."""
    preprocessing: str = "mammogram"
    """Preparation of an image before patches are cut from it: mammogram, dermoscopy, square."""
    picture: Settings = ()
    """Fields of the preprocessing, such as spacing_mm=0.2 or intensity=relative."""
    corpus: str = ""
    """URL of a corpus made from the data set, to check that it is complete and has no patient in two splits."""
    sheet: Amount = 48
    """Images that are shown."""

    def __call__(self) -> None:
        from rayad.on_ray.pool import connected
        from rayad.pipeline.inspect import inspect

        dataset = self.opened()
        preprocessing = catalog.configure("imaging", self.preprocessing, self.picture)
        out, corpus = storage.absolute(self.out), place(self.corpus)
        with claimed(out, "an inspection", [*read_by(dataset), corpus]), connected(self.address) as pool:
            page, problems = inspect(pool, *self.named(dataset), dataset, preprocessing, out, self.sheet, corpus)
        say(f"The page is at {page}")
        if problems:
            raise DatasetError(" ".join(problems))
