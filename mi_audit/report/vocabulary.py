"""The words of all reports: names of metrics, outcomes and controls, and where catalogues of threats file them."""

from collections.abc import Mapping
from typing import Literal, NamedTuple

Tone = Literal["good", "bad", "unsure", "plain"]

METRICS: Mapping[str, tuple[str, str, str]] = {
    "exposure": (
        "Identities exposed",
        "exposed",
        "share of classes whose surest reconstruction an independent verifier takes for the person",
    ),
    "attack_acc1": (
        "Attack accuracy, top-1",
        "top-1",
        "share of reconstructions that the evaluator assigns to the attacked class",
    ),
    "attack_acc5": (
        "Attack accuracy, top-5",
        "top-5",
        "share with the attacked class among the evaluator's five best guesses",
    ),
    "knn_l2sq_min": ("KNN distance, squared", "KNN", "feature distance to the nearest private image of the class"),
    "fid": ("FID", "FID", "Frechet distance to the private images, as a set, in Inception features"),
    "fid_evaluator": ("FID in evaluator features", "FID", "Frechet distance to the private images, as a set"),
    "target_acceptance": ("Accepted by the target", "accepted", "share the attacked model itself assigns to the class"),
    "exposure_train": (
        "Identities exposed, by training photographs",
        "exposed (train)",
        "as above, compared with photographs the model was trained on",
    ),
    "type1_gap": (
        "Convincing but not the person",
        "false",
        "share of identities whose surest picture the evaluator accepts and the verifier does not",
    ),
    "leakage": ("Exposure beyond the control", "leakage", "exposure minus that of the control, paired by class"),
    "leakage_acc1": (
        "Attack accuracy beyond the control",
        "leakage",
        "top-1 attack accuracy minus that of the control, paired by class",
    ),
    "near_duplicates": ("Suspected copies", "copies", "reconstructions that are almost a private training image"),
    "share_closer_pixel": (
        "Closer to training images, in pixels",
        "closer (pixels)",
        "share nearer to a training image of the person than to a held-out one; above 50% single images are remembered",
    ),
    "share_closer_evaluator": (
        "Closer to training images, in features",
        "closer (features)",
        "the same in evaluator features; compare it with the control, not with 50%",
    ),
    "kes": ("Knowledge extraction score", "KES", "accuracy on real images of a student taught by the reconstructions"),
    "lpips_alex_min_train": (
        "LPIPS, AlexNet",
        "LPIPS",
        "perceptual distance to the nearest private image of the class",
    ),
    "lpips_vgg_min_train": ("LPIPS, VGG", "LPIPS (VGG)", "the same in VGG-16; the two cannot be compared"),
    "kid": ("KID", "KID", "unbiased kernel distance to the private images, as a set, in Inception features"),
    "kid_evaluator": ("KID in evaluator features", "KID", "unbiased kernel distance to the private images, as a set"),
    "diversity_1cos": ("Diversity within a class", "diversity", "mean pairwise 1 - cosine of one class's pictures"),
    "precision_k3": ("Precision of the set", "precision", "share of reconstructions near some private image"),
    "recall_k3": ("Recall of the set", "recall", "share of private images near some reconstruction"),
    "density_k3": ("Density of the set", "density", "how many private images a reconstruction is near, over k"),
    "coverage_k3": ("Coverage of the set", "coverage", "share of private images with a reconstruction nearby"),
    "attack_acc1_variance_kedmi": (
        "Variance of the accuracy, as KED-MI prints it",
        "variance",
        "of the accuracies of five rounds; for comparison with papers only",
    ),
    "precision_nearest_k3": (
        "Precision, as PPA prints it",
        "precision",
        "tests the ball of the nearest private image only; for comparison with papers only",
    ),
    "accuracy": ("Accuracy of the model", "accuracy", "top-1 on private test images"),
}
OUTCOMES: Mapping[str, tuple[str, Tone]] = {
    "PASS": ("Pass", "good"),
    "FAIL": ("Fail", "bad"),
    "INCONCLUSIVE": ("Inconclusive", "unsure"),
}
MEANINGS: Mapping[str, Tone] = {"less leakage": "good", "better": "good", "more leakage": "bad", "worse": "bad"}
ACCESS: Mapping[str, str] = {
    "white-box": "weights and gradients of the model",
    "score": "class scores of images it sends to the model",
    "label-only": "the predicted class of images it sends to the model",
    "none": "nothing of the model",
}
CHECKS: Mapping[bool | None, tuple[str, Tone]] = {
    True: ("Passed", "good"),
    False: ("Not passed", "bad"),
    None: ("Not checked", "unsure"),
}


CONTROLS: Mapping[str, str] = {  # by how their names go on after `control:`
    "random-prior": "random pictures of the prior, without any model: what prior and judge say by themselves",
    "permuted-labels": "the reconstructions judged as other classes: what the judge says about pictures of attacks",
    "untrained": "the same attack on untrained weights: what prior and search find without any training",
    "counterfactual": "the same attack on a model that never met these people: what has nothing to do with them",
    "positive": "the same attack on a model that leaks on purpose: it has to succeed, else a low number means nothing",
}


class Taxon(NamedTuple):
    """Where a catalogue of threats files model inversion."""

    framework: str
    organization: str
    version: str
    id: str
    name: str
    link: str


TAXA = (
    Taxon(
        "NIST AI 100-2",
        "NIST",
        "E2025",
        "NISTAML.032",
        "Data reconstruction",
        "https://doi.org/10.6028/NIST.AI.100-2e2025",
    ),
    Taxon("MITRE ATLAS", "MITRE", "5.6.1", "AML.T0024.001", "Invert AI Model", "https://atlas.mitre.org"),
    Taxon(
        "OWASP Machine Learning Security Top Ten",
        "OWASP",
        "2023",
        "ML03:2023",
        "Model Inversion Attack",
        "https://owasp.org/www-project-machine-learning-security-top-10",
    ),
)
TAXONOMY = "Model inversion is " + "; ".join(f"{t.id} ({t.name}) in {t.framework}" for t in TAXA) + "."
NO_PROOF = (
    "A pass is no proof of anonymity or of compliance: it says that these attacks, at this budget, did not succeed."
)
