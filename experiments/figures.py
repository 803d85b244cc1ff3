r"""Draw the figures of the experiments, each from seeds, as PNG and CSV.

    python experiments/figures.py --out DIR [--only NAME,...] [--seeds 5]
        [--data-dir MNIST] [--cifar-dir FOLDER] [--traces PATH[,PATH]]
        [--devices FOLDER] [--quick]

Every point is a mean over the seeds, with its sample standard deviation. Without
folders of data the bundled digits stand in for MNIST and CIFAR-10, and without traces
and devices these are made up. What each figure shows is said in its module under
``figures/`` and in README.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from figures.accuracy import accuracy_cifar10, accuracy_mnist, time_to_target
from figures.backlog import backlog_utility
from figures.battery import battery
from figures.deadline import data_by_deadline
from figures.fairness_throughput import fairness
from figures.output import Options, Workers
from figures.utilisation import utilisation

FIGURES: dict[str, Callable[[Options, Workers], list[Path]]] = {
    figure.__name__: figure
    for figure in (
        accuracy_mnist,
        accuracy_cifar10,
        utilisation,
        time_to_target,
        data_by_deadline,
        backlog_utility,
        fairness,
        battery,
    )
}


def main(argv: Sequence[str] | None = None) -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument(
        "--out", type=Path, required=True, help="folder, made if need be"
    )
    parser.add_argument("--only", help=f"names out of {', '.join(FIGURES)}")
    parser.add_argument("--seeds", type=int, help="5, or 2 with --quick")
    parser.add_argument("--data-dir", type=Path, help="folder with MNIST")
    parser.add_argument("--cifar-dir", type=Path, help="folder with CIFAR-10")
    parser.add_argument("--traces", help="files of link traces, separated by commas")
    parser.add_argument("--devices", type=Path, help="folder of FLASH's files")
    parser.add_argument("--quick", action="store_true", help="small, within a minute")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    args = parser.parse_args(argv)
    seeds = (2 if args.quick else 5) if args.seeds is None else args.seeds
    names = args.only.split(",") if args.only else list(FIGURES)
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        parser.error(f"no figure {unknown[0]!r}: choose from {', '.join(FIGURES)}")
    if seeds < 1 or args.workers < 1:
        parser.error("--seeds and --workers must be at least 1")
    traces = [Path(p.strip()).absolute() for p in (args.traces or "").split(",") if p]
    folders = {"mnist": args.data_dir, "cifar10": args.cifar_dir}
    for path in (*traces, args.devices, *folders.values()):
        if path is not None and not path.exists():
            parser.error(f"there is no {path}")
    options = Options(
        out=args.out,
        seeds=seeds,
        data={name: str(path.absolute()) for name, path in folders.items() if path},
        traces=",".join(map(str, traces)) or "synthetic",
        devices=str(args.devices.absolute()) if args.devices else "synthetic",
        quick=args.quick,
    )
    options.out.mkdir(parents=True, exist_ok=True)
    begun = time.perf_counter()
    with Workers(args.workers) as workers:
        for name in names:
            start = time.perf_counter()
            for path in FIGURES[name](options, workers):
                print(f"{path}  {time.perf_counter() - start:.1f} s", flush=True)
    print(f"all {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
