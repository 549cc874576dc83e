"""The checkpoint file: what was saved comes back to the bit, and nothing else does."""

import json

import pytest
import torch
from safetensors.torch import save

from rayad import storage
from rayad.checkpoints import CheckpointFolder
from rayad.errors import FormatError, StorageError, TrainingError
from rayad.fit import Schedule, batches, fit
from rayad.models import cae
from rayad.progress import State

TENSORS = {
    "model.weight": torch.randn(3, 4, 5, 5).to(memory_format=torch.channels_last),
    "model.count": torch.tensor(7),
    "best.weight": torch.randn(2, 2, dtype=torch.float64),
    "best.low": torch.randn(5).bfloat16(),
    "optimizer.0.0.step": torch.tensor(3.0),
    "empty": torch.zeros(0, 3),
}
TENSORS_CONTIGUOUS = {name: value.contiguous() for name, value in TENSORS.items()}
SCALARS = {"epoch": 3, "best_loss": 0.1 + 0.2, "rows": [{"train_x": 1e-300}], "nothing": None}


@pytest.fixture
def folder(tmp_path) -> CheckpointFolder:
    return CheckpointFolder(str(tmp_path / "run"))


@pytest.fixture
def file(folder, tmp_path):
    folder.save(State(TENSORS, SCALARS))
    return tmp_path / "run" / "checkpoint.safetensors"


@pytest.mark.parametrize("url", ["memory://checkpoints/run", None])
def test_a_state_comes_back_to_the_bit(url, folder):
    folder = CheckpointFolder(url) if url else folder
    folder.save(State(TENSORS, SCALARS))
    state = folder.load()
    assert state is not None
    assert state.scalars == SCALARS
    assert state.tensors.keys() == TENSORS.keys()
    for name, value in TENSORS.items():
        assert state.tensors[name].dtype == value.dtype
        assert torch.equal(state.tensors[name], value)


def test_a_folder_without_a_checkpoint_has_no_state(folder):
    assert folder.load() is None


def test_the_last_state_counts(folder):
    for epoch in (1, 2):
        folder.save(State({"x": torch.full((2,), float(epoch))}, {"epoch": epoch}))
    state = folder.load()
    assert state is not None
    assert state.scalars == {"epoch": 2}
    assert state.tensors["x"].tolist() == [2, 2]
    assert storage.listing(folder.url) == [storage.join(folder.url, "checkpoint.safetensors")]


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.999])
def test_a_truncated_file_is_refused(share, folder, file):
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(FormatError, match=f"{file}: is not a whole checkpoint"):
        folder.load()


def test_no_byte_can_be_altered(folder, file):
    data = file.read_bytes()
    header = 8 + int.from_bytes(data[:8], "little")
    for place in [*range(0, header, 29), *range(header, len(data), 97), len(data) - 1]:
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            state = folder.load()
        except FormatError:
            continue
        # what went through is spelling: spaces that fill the header
        assert data[place : place + 1] == b" "
        assert state is not None
        assert state.scalars == SCALARS


def test_tensors_under_other_names_are_refused(folder, file):
    data = file.read_bytes()
    for old, new in ((b"model.count", b"@@@@@@@@@@@"), (b"best.weight", b"model.count"), (b"@" * 11, b"best.weight")):
        data = data.replace(b'"%s"' % old, b'"%s"' % new)
    file.write_bytes(data)
    with pytest.raises(FormatError, match="altered"):
        folder.load()


def test_other_safetensors_are_refused(folder, file):
    file.write_bytes(save(TENSORS_CONTIGUOUS))
    with pytest.raises(FormatError, match="not a whole checkpoint"):
        folder.load()
    file.write_bytes(save(TENSORS_CONTIGUOUS, {"scalars": json.dumps(SCALARS), "sha256": "0" * 64}))
    with pytest.raises(FormatError, match="altered"):
        folder.load()


def test_a_file_that_is_no_safetensors_is_refused(folder, file):
    file.write_bytes(b"\x80\x04\x95" + b"cos\nsystem\n" * 20)
    with pytest.raises(FormatError):
        folder.load()


@pytest.mark.parametrize("header", [b"[" * 100_000, b'{"__metadata__": {"a": NaN}}'])
def test_a_header_that_is_no_header_is_refused(folder, file, header):
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FormatError, match="is not a whole checkpoint: its header: "):
        folder.load()


def test_what_is_not_finite_is_not_kept(folder):
    folder.save(State({}, {"loss": 1.0}))
    with pytest.raises(TrainingError, match=r"checkpoint\.safetensors: what is known of the training is not finite"):
        folder.save(State({}, {"rows": [{"loss": float("nan")}]}))
    assert folder.load() == State({}, {"loss": 1.0})


def test_what_cannot_be_written_leaves_the_last_state(folder, file, monkeypatch):
    def full(url: str, data: bytes) -> None:
        raise StorageError(f"{url}: no space left on device")

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(StorageError, match="no space"):
        folder.save(State({}, {}))
    state = folder.load()
    assert state is not None
    assert state.scalars == SCALARS


def test_training_goes_on_from_the_file_to_the_same_bits(folder):
    x = torch.rand(20, 1, 64, 64, generator=torch.Generator().manual_seed(0))

    def train(epochs: int, folder: CheckpointFolder) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = cae.Config(width=4, latents=6).build()
        schedule = Schedule(epochs=epochs, batch=8)
        fit(
            model,
            lambda epoch: batches(x, schedule, epoch),
            lambda: batches(x, schedule),
            schedule,
            checkpoints=folder,
        )
        return model.state_dict()

    whole = train(3, CheckpointFolder(storage.join(folder.url, "whole")))

    class Interrupted(CheckpointFolder):
        def save(self, state: State) -> None:
            super().save(state)
            if state.scalars["epoch"] == 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(3, Interrupted(folder.url))
    resumed = train(3, folder)
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())
