"""`import`: published generators, brought into our own format."""

from pathlib import Path
from typing import Annotated

import typer

from mi_audit.cli.options import Json
from mi_audit.cli.session import current, emit, emit_json, say


def import_weights(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="A StyleGAN2-ADA pickle, such as ffhq.pkl.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Safetensors file to write.")],
    accept_licence: Annotated[
        bool, typer.Option("--accept-licence", metavar="", help="You read the licence of the weights and accept it.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Bring a published StyleGAN2-ADA generator into a safe format; nothing in the file is run.

    Attacks then use it instead of training a prior:
    --set priors.stylegan2.weights=ffhq.safetensors

    [bold]Examples[/bold]

      mi-audit import ffhq.pkl -o ffhq.safetensors
    """
    from mi_audit.audit.importing import import_generator

    facts = import_generator(source, output, accepted=accept_licence)
    if not accept_licence:
        say(f"{facts['licence']}; read it before you use the weights, and give --accept-licence", "licence", "yellow")
    if current().json or as_json:
        emit_json(facts)
        return
    emit(
        f"{facts['file']}: {facts['size']} px, {facts['channels']} channels, {facts['parameters']:,} numbers\n"
        f"licence: {facts['licence']}"
    )
