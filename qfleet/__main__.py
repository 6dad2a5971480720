"""`python -m qfleet` and the command `qfleet`. Only names cluster.main, which importing qfleet makes safe."""

from cluster.main import main

if __name__ == "__main__":
    main()
