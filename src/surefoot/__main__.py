"""``python -m surefoot`` and the ``surefoot`` command."""

import sys


def main() -> None:
    """Run the command line; without the packages that it needs, say in one sentence how to get them."""
    try:
        from surefoot.lab.cli import main as run

        run()
    except ModuleNotFoundError as error:
        print(
            f"surefoot: package {error.name!r} is not installed; the command line needs: pip install 'surefoot[study]'",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
