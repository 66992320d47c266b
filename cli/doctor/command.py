"""The command `tandem doctor`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from tandem.cli.doctor.report import Report
from tandem.cluster.config import TandemConfig
from tandem.runs.reporting.console import PlainConsole

out = PlainConsole()
err = PlainConsole(stderr=True)


def doctor(
    config_path: Annotated[
        Path | None, typer.Option("--config", "-c", help="A tandem.yaml. Default: the built-in tiny model.")
    ] = None,
    gpu: Annotated[bool, typer.Option("--gpu", help="Also compute with a learner and an engine on each GPU.")] = False,
    device: Annotated[
        Literal["cuda", "cpu"] | None, typer.Option(help="Compute on this kind of device; cpu needs no GPU.")
    ] = None,
    model: Annotated[str, typer.Option(help="The model that computes: a directory or an id.")] = "builtin:tiny",
) -> None:
    """Check this machine and a configuration. Every line says OK or what to do; the status is 1 if any isn't OK."""
    from tandem.cli.doctor.compute import check_compute
    from tandem.cli.doctor.machine import check_machine
    from tandem.cli.doctor.service import check_service

    report = Report(out)
    try:
        config = TandemConfig.load(config_path)
    except ValueError as error:
        err.error(str(error))
        raise typer.Exit(2) from None
    gpus = check_machine(report, config)
    check_service(report, config, gpus)
    if gpu or device:
        check_compute(report, gpus, "cpu" if device == "cpu" else "cuda", model)
    faults = sum(not line.is_ok for line in report.lines)
    out.print("All is well." if report.is_ok else f"{faults} of {len(report.lines)} checks need a change.")
    raise typer.Exit(0 if report.is_ok else 1)
