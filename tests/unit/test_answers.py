"""What is said of images and batches: whole from JSON and back, of older and newer servers; requests are closed."""

import json

import pytest
from pydantic import ValidationError

from rayad.heatmaps import answers
from rayad.heatmaps.answers import Answer, Batch, BatchRequest, BatchSummary, Failure, Result
from rayad.imaging.plausibility import Doubt
from rayad.serving.batches import new


def test_an_answer_comes_back_from_its_json():
    answer = Answer.model_validate(answers.ANSWER | {"doubts": [{"kind": "depth", "sentence": "values end at 4,095"}]})
    assert answer.doubts == (Doubt("depth", "values end at 4,095"),)
    assert answer.findings[0].row == 812.0
    assert Answer.model_validate_json(answer.model_dump_json()) == answer
    row = answer.of("s3://inbox/1.dcm", "1")
    assert (row.image, row.name, row.score, row.doubts) == ("s3://inbox/1.dcm", "1", answer.score, answer.doubts)


def test_fields_of_a_newer_server_are_left_out_and_those_that_an_older_one_lacks_have_defaults():
    newer = json.dumps(answers.ANSWER | {"colour": "green"})
    assert Answer.model_validate_json(newer) == Answer.model_validate(answers.ANSWER)
    row = Result.model_validate({"image": "a", "name": "a", "score": 1.0, "p_value": 0.5})
    assert (row.p_value_floor, row.calibration_patients, row.doubts) == (0.0, 0, ())


@pytest.mark.parametrize("lacking", ["score", "findings", "detector"])
def test_an_answer_without_what_it_must_have_is_none(lacking):
    with pytest.raises(ValidationError, match=lacking):
        Answer.model_validate({name: value for name, value in answers.ANSWER.items() if name != lacking})


def test_names_of_files_in_no_encoding_can_be_written():
    failure = Failure(image="folder/\udce9.png", reason="folder/\udce9.png is empty")
    assert json.loads(failure.model_dump_json())["image"] == r"folder/\udce9.png"


def test_a_row_is_a_result_or_a_failure_whichever_its_json_is():
    result = Result.model_validate(answers.VERDICT | {"image": "a", "name": "a"})
    for row in (result, Failure(image="b", reason="it is empty")):
        assert answers.ROW.validate_json(row.model_dump_json()) == row
    with pytest.raises(ValidationError):
        answers.ROW.validate_json('{"image": "c"}')


def test_a_request_has_the_fields_that_it_names_and_no_others():
    request = BatchRequest.model_validate_json('{"prefix": "s3://in/", "out": "s3://out", "force": ["kind"]}')
    assert request.request.force == ("kind",)
    assert (request.request.spacing_mm, request.results) == (0.0, ("json", "npz", "png"))
    for wrong, said in (
        ({"colour": 1}, "the fields are prefix, .* and no others"),
        ({"force": ["color"]}, "polarity"),
        ({"results": ["pdf"]}, "dicom"),
        ({"results": ["json", "counterfactual"]}, "a part of npz and png: results has neither"),
        ({"spacing_mm": -1}, "greater than or equal to 0"),
    ):
        with pytest.raises(ValidationError, match=said):
            BatchRequest.model_validate({"prefix": "s3://in/", "out": "s3://out"} | wrong)


def test_a_batch_counts_what_came_of_its_images_and_its_summary_has_none_of_them():
    request = BatchRequest(prefix="s3://in/", out="s3://out", view="MLO")
    batch = new(request, answers.DetectorName.model_validate(answers.DETECTOR), "s3://detector")
    batch.add(Result.model_validate(answers.VERDICT | {"image": "a", "name": "a"}))
    batch.add(Failure(image="b", reason="it is empty"))
    assert batch.lacking([("a", "a"), ("b", "b"), ("c", "c")]) == [("c", "c")]
    assert (batch.status.done, batch.status.failed, batch.status.asked.view) == (1, 1, "MLO")
    assert Batch.model_validate_json(batch.status.model_dump_json()) == batch.status
    assert set(batch.status.summary().model_dump()) == set(BatchSummary.model_fields)
    batch.forget({"a"})
    batch.end("failed", "the detector was replaced")
    assert [failure.image for failure in batch.status.failures] == ["b", ""]
    assert not batch.running
