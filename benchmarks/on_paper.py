"""What a million exams would take on 8 and on 64 GPUs: a model on paper, from measured rates of a CPU and a data sheet.

    python benchmarks/on_paper.py      # prints the table of docs/scaling.md

No GPU was measured. A stage takes as long as the slowest of three: its arithmetic on the GPUs, at a share of the card's
peak that is an assumption; its work on the CPU cores beside them, at the rates of `results/end_to_end.json` and
`results/reading.json`; its bytes through the network of the nodes. The start of processes, the agreement of workers
and the price of requests are left out. A corpus has 16 lanes, so at most 16 workers train one model.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from rayad.patches.corpus import LANES

RESULTS = Path(__file__).parent / "results"
PEAK = 67e12
"""Float32 operations a second of an H100 SXM without tensor cores (NVIDIA's data sheet)."""
SHARE = 0.25
"""Of the peak that is reached; an assumption."""
NODE_GPUS, NODE_BYTES = 8, 12.5e9
"""GPUs of a node, and its bytes a second from and to object storage (100 Gbit/s); assumptions."""
GPU_CORES = 16
"""CPU cores beside a GPU; an assumption."""
GPU_PRICE, CORE_PRICE = 3.0, 0.04
"""USD an hour for a GPU with its cores and for a core alone; assumptions."""

IMAGES, PATCHES = 4_000_000, 120
"""A million exams of four images; patches an image."""
IMAGE_BYTES, PATCH_BYTES, COMPRESSED, LATENT_BYTES = 9e6, 8192, 0.27, 256
EPOCHS = {"training": 20, "EM": 20}
CAE_FORWARD, CAE_STEP = 70e6, 210e6
"""Operations a patch: multiplications and additions of the convolutions, and three times as many with gradients."""
LOG_P, STATISTICS = 0.78e6, 2.4e6
"""Operations a row of the circuit with C=1, I=45, D=1, R=50 (benchmarks/density.py)."""
DENSE = 16.8e9 + 4096 * LOG_P
"""Operations of a heatmap of 1024 x 1024 px at places 16 px apart (benchmarks/heatmap.py)."""


@dataclass(frozen=True)
class Work:
    """What a stage has to do for all exams."""

    name: str
    operations: float
    """On GPUs."""
    core_seconds: float
    """Beside them, on CPUs."""
    moved: float
    """Bytes from and to object storage."""
    cpu_seconds: float
    """All of it on one core, without a GPU."""
    most_workers: int = 1 << 20


@dataclass(frozen=True)
class Cluster:
    """GPUs with their cores, or cores alone."""

    gpus: int
    cores: int

    @property
    def name(self) -> str:
        return f"{self.gpus} GPUs, {self.cores:,} cores" if self.gpus else f"{self.cores} cores"

    def seconds(self, work: Work) -> dict[str, float]:
        """What each limit alone would allow."""
        nodes = max(1, self.gpus // NODE_GPUS)
        limits = {"network": work.moved / (nodes * NODE_BYTES)}
        if not self.gpus:
            return limits | {"cores": work.cpu_seconds / self.cores}
        gpus = min(self.gpus, work.most_workers)
        limits["GPUs" if gpus == self.gpus else f"{gpus} workers"] = work.operations / (gpus * PEAK * SHARE)
        return limits | {"cores": work.core_seconds / (self.cores * gpus / self.gpus)}

    @property
    def price(self) -> float:
        """USD an hour."""
        return self.gpus * GPU_PRICE or self.cores * CORE_PRICE


CLUSTERS = (Cluster(0, 64), *(Cluster(gpus, gpus * GPU_CORES) for gpus in (8, 64)))


def works() -> list[Work]:
    """The stages, with what was measured of them on a CPU."""
    images = {row["image"]: row for row in _rows("end_to_end") if row["rayad"] == "here"}  # CPU seconds of one thread
    film, stages = images["1-282.dcm"], images["mini-MIAS"]
    opened = film["read"] + film["prepare"]
    cut = stages["ingest"] / 62 - images["mdb001.png"]["prepare"]  # of the 62 healthy images that ingest takes
    unpacked = next(row["rayad-s3"]["MB_per_s"] for row in _rows("reading") if row["shard_megabytes"] == 32) * 1e6
    speed = json.loads((RESULTS / "scaling.json").read_text())["rows"]
    rows = IMAGES * PATCHES
    stored, read = rows * PATCH_BYTES * COMPRESSED, rows * PATCH_BYTES / unpacked
    latents = rows * LATENT_BYTES
    train, em = EPOCHS["training"], EPOCHS["EM"]
    return [
        Work("ingest", 0, IMAGES * (opened + cut), IMAGES * IMAGE_BYTES + stored, IMAGES * (opened + cut)),
        Work(
            f"training, {train} epochs",
            train * rows * CAE_STEP,
            train * read,
            train * stored,
            train * rows / speed["train 1"]["samples_per_s"],
            LANES,
        ),
        Work(
            "encoding",
            rows * CAE_FORWARD,
            read,
            stored + latents,
            rows / speed["encode 1"]["samples_per_s"],
        ),
        Work(
            f"EM, {em} epochs",
            em * rows * STATISTICS,
            0,
            latents,
            em * rows / speed["large em 1"]["samples_per_s"],
        ),
        Work(
            "heatmaps of all images",
            IMAGES * DENSE,
            IMAGES * (opened + film["judge"] + film["npz"]),
            IMAGES * IMAGE_BYTES,
            IMAGES * film["numbers"],
        ),
    ]


def main() -> None:
    """Print a row a stage: hours, and what limits them, on each cluster; then what it costs."""
    print("| stage | " + " | ".join(cluster.name for cluster in CLUSTERS) + " |")
    print("|---" * (len(CLUSTERS) + 1) + "|")
    hours = dict.fromkeys(CLUSTERS, 0.0)
    for work in works():
        cells = []
        for cluster in CLUSTERS:
            limits = cluster.seconds(work)
            limit = max(limits, key=lambda name: limits[name])
            hours[cluster] += limits[limit] / 3600
            cells.append(f"{_time(limits[limit])}, {limit}")
        print(f"| {work.name} | " + " | ".join(cells) + " |")
    totals = [f"{_time(hours[cluster] * 3600)}, {hours[cluster] * cluster.price:,.0f} USD" for cluster in CLUSTERS]
    print("| all | " + " | ".join(totals) + " |")


def _time(seconds: float) -> str:
    """Two digits, in hours or minutes."""
    return f"{float(f'{seconds / 3600:.2g}'):,g} h" if seconds >= 3600 else f"{float(f'{seconds / 60:.2g}'):g} min"


def _rows(name: str) -> list[dict]:
    return json.loads((RESULTS / f"{name}.json").read_text())["rows"]


if __name__ == "__main__":
    main()
