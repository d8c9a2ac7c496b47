"""The entry point of ``idiolect``: a thin device without heavy imports, all other commands by Typer."""

import sys


def main() -> None:
    """Run the command of ``sys.argv``. ``idiolect device`` works where torch, Flower and Typer are not installed."""
    if sys.argv[1:2] == ["device"]:
        from clients.device.cli import main as device

        sys.exit(device(sys.argv[2:]))
    from sim.cli.app import main as other

    other()
