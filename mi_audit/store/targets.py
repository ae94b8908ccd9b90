"""Any classifier, loaded safely: which network, which weights, which input; each fact with where it came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mi_audit.core.defense import Edit
from mi_audit.core.errors import ConfigError, TargetError
from mi_audit.core.target import QueryLedger, TorchTarget
from mi_audit.nn import edits as surgery
from mi_audit.nn.classifier import Classifier, hastened
from mi_audit.nn.output_rules import answer
from mi_audit.store.architectures import build, complete_name, defaults, load_strictly, seeded
from mi_audit.store.checkpoints import open_checkpoint
from mi_audit.store.files import write_atomic
from mi_audit.store.manifest import MARK, Declared, beside, canonical, within
from mi_audit.store.plausibility import check_counts, check_seal, rehearse
from mi_audit.store.references import PUBLISHED, locate, published
from mi_audit.store.resolution import read_labels, resolve
from mi_audit.store.weights import hash_weights, write_weights

ClassOrder = Literal["auto", "natural", "lexical"]


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A classifier and everything known about it.

    Attributes:
        ref: As the user wrote it.
        arch: Complete name of the architecture.
        sha256: Hash of the weights when they were loaded, created or saved.
        class_names: In output order; empty when unknown.
        origins: Where each fact came from.
        defense: Name and facts of the defense it was trained with; empty when none is known.
        explicit: Facts that the user or a manifest of ours states, and that are therefore not searched for.
        class_order: `as given`, or how outputs map to the data: `natural`, `lexical`, `class names`; `auto` before that
            is known.
        alternatives: Other architectures that hold the same tensors and compute something else.
        model_kwargs: Arguments of the architecture's factory.
        edits: What a defense changed in the architecture, to be repeated on a fresh network.
    """

    classifier: Classifier
    ref: str
    arch: str
    sha256: str
    class_names: tuple[str, ...] = ()
    origins: dict[str, str] = field(default_factory=dict)
    defense: dict[str, object] = field(default_factory=dict)
    explicit: frozenset[str] = frozenset()
    class_order: str = "as given"
    alternatives: tuple[str, ...] = ()
    model_kwargs: dict[str, object] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()

    def target(self, ledger: QueryLedger | None = None, *, hasten: bool = False) -> TorchTarget:
        """The network as attacks see it; frozen and in eval mode from here on.

        Args:
            ledger: Counts what it is asked; a new one by default.
            hasten: Send gradients through a rebuilt copy, which gives the same logits to the rounding of floats.
        """
        net = self.classifier
        return TorchTarget(net, net.num_classes, net.head, ledger, answer(self.edits), hastened if hasten else None)

    def with_input(self, **changes: Any) -> "LoadedModel":  # noqa: ANN401
        """The same weights behind another `size`, `mean`, `std` or `order`."""
        return replace(self, classifier=_wrap(self.classifier.net, {**_input_of(self.classifier), **changes}))

    def edited(self, edits: Sequence[Edit]) -> "LoadedModel":
        """The network changed by `edits`, in place, behind the same input; their new layers have fresh weights."""
        surgery.apply(self.classifier.net, edits, self.edits)
        changed = _wrap(self.classifier.net, _input_of(self.classifier))
        return replace(self, classifier=changed, edits=(*self.edits, *edits))

    def as_arch(self, arch: str) -> "LoadedModel":
        """The same weights in another architecture that holds the same tensors."""
        old = self.classifier
        published = defaults(arch)
        size = old.size if "size" in self.explicit else published.size or old.size
        net = _fresh(arch, old.num_classes, old.channels, size, self.model_kwargs, seed=0)
        surgery.apply(net, self.edits)
        load_strictly(net, old.net.state_dict(), arch, self.ref)
        settings = {**_input_of(old), "size": size}
        if "mean" not in self.explicit and published.mean and published.std:
            settings |= {"mean": published.mean, "std": published.std}
        device = next(iter(old.parameters())).device
        return replace(self, arch=arch, classifier=_wrap(net, settings).to(device))


def load_model(
    ref: str,
    *,
    arch: str | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    labels: Path | None = None,
    class_order: ClassOrder = "auto",
    model_kwargs: Mapping[str, object] | None = None,
    allow_pickle: bool = False,
    device: str = "cpu",
) -> LoadedModel:
    """Load a classifier: arguments win over sidecar files, these over metadata, these over what the tensors show.

    Raises:
        TargetError: The weights cannot be read safely, do not fit the architecture, or a fact cannot be found out.
    """
    flags = Declared.of(
        "flag", arch=arch, num_classes=num_classes, channels=channels, size=size, mean=mean, std=std,
        class_names=read_labels(labels) if labels else None, model_kwargs=model_kwargs or None,
    )  # fmt: skip
    if ref.startswith(PUBLISHED):
        net, known = published(ref)
        declared, alternatives = resolve(flags.over(known), _shapes(net.state_dict()), ref)
        origin = "published weights"
    else:
        checkpoint = open_checkpoint(locate(ref), allow_pickle=allow_pickle)
        known = beside(checkpoint.path).over(within(checkpoint.metadata, str(checkpoint.path)))
        check_seal(known, checkpoint.tensors, ref)
        declared, alternatives = resolve(flags.over(known), _shapes(checkpoint.tensors), ref)
        net = _fitting(declared, checkpoint.tensors, ref)
        origin = "; ".join((checkpoint.format, *checkpoint.notes))
    return _assemble(net.to(device), declared, ref, origin, alternatives, class_order)


def new_model(
    arch: str,
    *,
    num_classes: int,
    channels: int,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    seed: int,
) -> LoadedModel:
    """A classifier with fresh weights drawn from `seed`.

    Raises:
        TargetError: There is no such architecture, or it does not take such images.
    """
    arch = complete_name(arch, "flag")
    net = _fresh(arch, num_classes, channels, size, {}, seed)
    classifier = _wrap(net, {"size": size, "channels": channels, "mean": mean, "std": std})
    if classifier.num_classes != num_classes:
        raise TargetError(
            f"expected {num_classes} outputs, got {classifier.num_classes} from {arch}; accept num_classes= there"
        )
    stated = frozenset({"arch", "num_classes", "channels", "size", "mean", "std"})
    return LoadedModel(
        classifier,
        "new",
        arch,
        hash_weights(net.state_dict()),
        origins=dict.fromkeys(sorted(stated), "created"),
        explicit=stated,
    )


def save_model(path: Path, model: LoadedModel, facts: Mapping[str, object]) -> LoadedModel:
    """Write the weights with a manifest in the metadata and beside them, so that `load_model(path)` needs nothing else.

    Args:
        path: A `.safetensors` file; the manifest is repeated as `<stem>.json`.
        model: What to save.
        facts: Anything worth remembering; `defense` replaces the model's.

    Returns:
        The model under its new reference, with the hash of the weights it has now.

    Raises:
        StorageError: The files cannot be written.
    """
    net = model.classifier.net
    saved = replace(model, ref=str(path), sha256=hash_weights(net.state_dict()))
    if "defense" in facts:
        saved = replace(saved, defense=dict(facts["defense"]))  # type: ignore[call-overload]
    about = manifest(saved, {key: value for key, value in facts.items() if key != "defense"})
    # Weights make a model that is finished and kept: when they are there, their sidecar has to be there already.
    write_atomic(path.with_suffix(".json"), canonical(about).encode())
    write_weights(path, net.state_dict(), about)
    return saved


def manifest(model: LoadedModel, facts: Mapping[str, object]) -> dict[str, object]:
    """Everything `load_model` needs to load these weights again, and `facts`."""
    net = model.classifier
    return {
        **MARK, "arch": model.arch, "num_classes": net.num_classes, "channels": net.channels, "size": net.size,
        "mean": list(net.mean_values), "std": list(net.std_values), "order": list(net.order) if net.order else None,
        "logits_index": net.logits_index, "class_names": list(model.class_names), "model_kwargs": model.model_kwargs,
        "defense": model.defense, "edits": [dict(edit) for edit in model.edits],
        "sha256": model.sha256, "facts": dict(facts),
    }  # fmt: skip


def load_target(ref: str, **options: Any) -> TorchTarget:  # noqa: ANN401
    """The classifier at `ref`, ready to be attacked; `options` are those of `load_model`.

    Raises:
        TargetError: It cannot be loaded, or several architectures fit and no data decide between them.
    """
    model = load_model(ref, **options)
    if model.alternatives:
        fitting = ", ".join((model.arch, *model.alternatives))
        raise TargetError(
            f"expected tensors of one architecture, got {ref} that fits {fitting}; "
            f"say which, as in arch={model.arch!r} (--arch {model.arch})"
        )
    return model.target()


def _assemble(
    net: nn.Module, declared: Declared, ref: str, origin: str, alternatives: tuple[str, ...], class_order: ClassOrder
) -> LoadedModel:
    try:
        answer(declared.edits or ())
    except ConfigError as error:
        raise TargetError(f"{error} ({ref})") from error
    classifier = _wrap(
        net,
        {name: getattr(declared, name) for name in ("size", "channels", "mean", "std", "order", "logits_index")},
    )  # fmt: skip
    if declared.num_classes not in (None, classifier.num_classes):
        raise TargetError(
            f"expected {declared.num_classes} classes ({declared.origins['num_classes']}), "
            f"got {classifier.num_classes} outputs from {ref}; correct --num-classes"
        )
    names = declared.class_names or ()
    if names and len(names) != classifier.num_classes:
        raise TargetError(
            f"expected {classifier.num_classes} class names, got {len(names)} ({declared.origins['class_names']}); "
            "correct --labels or the sidecar"
        )
    return LoadedModel(
        classifier,
        ref,
        str(declared.arch),
        hash_weights(net.state_dict()),
        class_names=names,
        origins={**declared.origins, "weights": origin},
        defense=dict(declared.defense or {}),
        explicit=frozenset(
            name for name, source in declared.origins.items() if source == "flag" or "manifest" in source
        ),
        class_order="as given" if declared.order else class_order,
        alternatives=alternatives,
        model_kwargs=dict(declared.model_kwargs or {}),
        edits=declared.edits or (),
    )


def _fitting(declared: Declared, tensors: Mapping[str, Tensor], ref: str) -> nn.Module:
    arch, channels = str(declared.arch), declared.channels or 3
    check_counts(declared, tensors, ref)
    # The number of classes may be unknown only for own code that has it fixed; the factory is then called without it.
    net = _fresh(arch, declared.num_classes or 1, channels, declared.size, declared.model_kwargs or {}, seed=0)
    rehearse(net, declared.edits or (), tensors, arch, ref)
    surgery.apply(net, declared.edits or ())
    load_strictly(net, tensors, arch, ref)
    return net


def _fresh(
    arch: str, num_classes: int, channels: int, size: int | None, kwargs: Mapping[str, object], seed: int
) -> nn.Module:
    with seeded(seed):
        return build(arch, num_classes=num_classes, channels=channels, size=size, kwargs=kwargs)


def _wrap(net: nn.Module, settings: Mapping[str, Any]) -> Classifier:
    parameters = next(iter(net.parameters()), torch.zeros(()))
    classifier = Classifier(net, **settings)
    return classifier.to(parameters.device)


def _input_of(classifier: Classifier) -> dict[str, Any]:
    return {
        "size": classifier.size, "channels": classifier.channels, "mean": classifier.mean_values,
        "std": classifier.std_values, "order": classifier.order, "logits_index": classifier.logits_index,
    }  # fmt: skip


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
