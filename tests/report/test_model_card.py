import pytest

from mi_audit.report import wording
from mi_audit.report.model_card import model_card, scalar
from tests.report import sample

yaml = pytest.importorskip("yaml")


def parts(result):
    empty, front, body = model_card(result).split("---\n", 2)
    assert empty == ""
    return yaml.safe_load(front), body


def test_the_model_index_names_task_data_and_metrics():
    front, _ = parts(sample.trusted())
    (model,) = front["model-index"]
    (entry,) = model["results"]
    assert model["name"] == "face.safetensors" and entry["task"] == {"type": "image-classification"}
    assert entry["dataset"] == {"type": "private", "name": "digits:0-4"}
    assert [metric["type"] for metric in entry["metrics"]] == [
        "accuracy", "mi-audit-attack_acc1", "mi-audit-exposure", "mi-audit-attack_acc1",
    ]  # fmt: skip
    exposure = entry["metrics"][2]
    assert exposure["name"] == "Identities exposed, PPA" and exposure["value"] == 0.2
    assert exposure["args"] == {
        "attack": "ppa", "access": "white-box", "protocol": "exposure/image/all/none@cnn-wide-5f3a9c01",
        "count": 5, "low": 0.01, "high": 0.6,
    }  # fmt: skip


def test_the_text_says_what_was_found_and_what_it_does_not_prove():
    _, body = parts(sample.trusted())
    assert "**Fail.** An independent verifier recognises 3 of 300 attacked identities" in body
    assert "| PPA | white-box | 20.0% [1.0, 60.0] | 68.0% [57.0, 79.0] |" in body
    assert f"| GMI | white-box | {wording.DASH} | 46.0% [35.0, 57.0] | 12.0% [7.0, 17.0] |" in body
    assert "- G3 NOT\\_CONVERGED: the target accepts 71% of the reconstructions" in body
    assert "no proof of anonymity" in body and "AML.T0024.001" in body
    assert "false acceptance rate is 0.4% [0.1, 1.0]. Small and trained on few identities." in body


def test_without_a_verifier_the_card_says_who_judged():
    assert "which is no independent judge" in parts(sample.audit())[1]


def test_a_defended_model_names_its_defense():
    assert "trained with the defense `tldmi`" in parts(sample.comparison())[1]


def test_a_card_is_public():
    private = sample.DataFacts(ref="/home/somebody/faces/", fingerprint="ab", images=1, classes=1, splits={})
    secret = sample.trusted(
        private=private,
        targets=(sample.model(0.9, ref="C:\\Users\\somebody\\face.pt"),),
        classes=("Ada", "Bob", "Cleo", "Dan", "Eve"),
    )
    front, _ = parts(secret)
    assert front["model-index"][0]["name"] == "face.pt"
    assert front["model-index"][0]["results"][0]["dataset"]["name"] == "faces"
    assert not any(word in model_card(secret) for word in ("somebody", "Ada", "Cleo", "![", "base64"))


@pytest.mark.parametrize(
    "text", ["a: b # c", '"\\', "- x\n---\n", "\x00\x85\u2028\ufeff", "😀 {{ x }}", "!!python/none", "1.0"]
)
def test_scalars_read_back_as_they_were(text):
    assert yaml.safe_load(scalar(text)) == text


def test_hostile_names_stay_text():
    hostile = "<img src=x onerror=alert(1)>\n---\n# h: [x](y)"
    front, body = parts(sample.trusted(targets=(sample.model(0.9, ref=hostile, arch=hostile),)))
    assert front["model-index"][0]["name"] == hostile  # it holds no slash, so that it is a name as a whole
    assert "<img" not in body
