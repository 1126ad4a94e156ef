"""`opengradient-devnet`, also as `python -m opengradient_devnet`: says what to install when packages are missing."""

import sys


def main() -> None:
    """The command line, if all that it needs is installed."""
    try:
        from opengradient_devnet.cli import main as run
    except ModuleNotFoundError as exc:
        sys.exit(
            f"opengradient-devnet needs the package {exc.name!r}, which is not installed. Nothing was started. "
            "Install it: pip install 'opengradient-integrations[devnet]'"
        )
    run()


if __name__ == "__main__":
    main()
