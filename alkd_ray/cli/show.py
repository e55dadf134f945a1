"""``alkd list``, ``alkd doctor``, ``alkd config show|check``."""

from __future__ import annotations

from typing import Annotated

import typer

config_app = typer.Typer(no_args_is_help=True)

ConfigArgument = Annotated[str, typer.Argument(help="A YAML file, or quickstart.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(help="Fields to change: key=value, e.g. selection.budget=300")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@config_app.command("show")
def config_show(
    config: ConfigArgument, overrides: OverridesArgument = None, as_json: JsonOption = False
) -> None:
    """Prints the whole config as resolved: defaults, preset, file, overrides."""
    import yaml

    from alkd_ray.cli.console import print_json
    from alkd_ray.config import load

    resolved = load(config, overrides).model_dump()
    if as_json:
        print_json(resolved)
    else:
        typer.echo(yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True), nl=False)


@config_app.command("check")
def config_check(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Says whether a config is valid; exit status 2 and the fields that are not, otherwise."""
    from alkd_ray.config import load

    load(config, overrides)
    typer.echo(f"{config}: valid")


def list_plugins(
    room: Annotated[str | None, typer.Argument(help="One room only.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Lists the plug-ins that a config can name, room by room."""
    from alkd_ray import registry
    from alkd_ray.cli.console import print_json

    rooms = {name: registry.names(name) for name in ([room] if room else registry.ROOMS)}
    if as_json:
        print_json(rooms)
        return
    for name, plugins in rooms.items():
        typer.echo(f"{name}:")
        for plugin in plugins:
            summary = (registry.find(name, plugin).__doc__ or "").strip().split("\n")[0]
            typer.echo(f"  {plugin:<18} {summary}")


def doctor() -> None:
    """Checks what a run needs: versions, CPUs, memory, GPU, the run root, MLflow's store."""
    import os
    import platform
    from importlib.metadata import version

    import psutil

    from alkd_ray.artifacts import run_root

    typer.echo(f"python   {platform.python_version()}")
    for package in ("alkd_ray", "ray", "torch", "mlflow", "openai", "pyarrow", "genai-prices"):
        typer.echo(f"{package:<8} {version(package)}")
    import torch

    typer.echo(f"cpus     {os.cpu_count()}")
    typer.echo(f"memory   {psutil.virtual_memory().available / 2**30:.1f} GiB free")
    typer.echo(f"gpu      {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}")
    root = run_root()
    root.mkdir(parents=True, exist_ok=True)
    writable = os.access(root, os.W_OK)
    typer.echo(f"root     {root} ({'writable' if writable else 'NOT WRITABLE'})")
    typer.echo(f"mlflow   {os.environ.get('MLFLOW_TRACKING_URI') or 'SQLite below the run root'}")
    typer.echo(f"ray      {os.environ.get('RAY_ADDRESS') or 'started on this machine when needed'}")
    if not writable:
        raise typer.Exit(1)


def add_to(app: typer.Typer) -> None:
    """Mounts the verbs without a group."""
    app.command("list")(list_plugins)
    app.command("doctor")(doctor)
