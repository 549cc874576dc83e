"""The command that looks at a data set, on a real Ray: it fails where one must not learn from what it saw."""

from rayad import cli
from rayad.datasets import folder, phantom
from rayad.patches.corpus import Corpus


def test_a_corpus_with_a_patient_in_two_splits_is_refused(tmp_path, capsys):
    images, corpus, out = (str(tmp_path / name) for name in ("images", "corpus", "page"))
    dataset = phantom.Dataset(patients=24, height=256, width=192)
    folder.export(dataset, dataset.exams(), images)
    of_folder = ["--dataset", "folder", "--source", images]
    assert cli.run(["ingest", *of_folder, "--out", corpus, "--sampling.patches", "4"]) == 0
    assert cli.run(["inspect", *of_folder, "--out", str(tmp_path / "whole"), "--sheet", "2", "--corpus", corpus]) == 0
    capsys.readouterr()
    index_url = f"{corpus}/index.parquet"
    index = Corpus.open(corpus).index()
    index.loc[index.index[-1], "patient_id"] = index["patient_id"].iloc[0]
    index.to_parquet(index_url, index=False)
    assert cli.run(["inspect", *of_folder, "--out", out, "--sheet", "2", "--corpus", corpus]) == 1
    assert "1 patients stand in two splits" in capsys.readouterr().err
    assert cli.run(["train", "--corpus", corpus, "--out", str(tmp_path / "cae")]) == 1
    assert "1 patients stand in two splits" in capsys.readouterr().err
