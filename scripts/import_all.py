"""Imports every module of the installed package: each must load with the core dependencies."""

import importlib
import os
import pkgutil

os.environ["MPLBACKEND"] = "Agg"  # figures are files; before anything imports matplotlib

import asap_exp


def main() -> None:
    names = [m.name for m in pkgutil.walk_packages(asap_exp.__path__, "asap_exp.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    print(f"{len(names)} modules of asap_exp found, and each imported but __main__")


if __name__ == "__main__":
    main()
