"""``python -m refork`` is ``refork``."""

from refork.platform_check import require

if __name__ == "__main__":
    require()
    from refork.cli import main

    main()
