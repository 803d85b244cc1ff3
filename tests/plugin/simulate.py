"""Run a Flower app's two halves in Flower's simulation: simulate.py APP MODEL NODES."""

import sys

if __name__ == "__main__":
    app_dir, final_model, num_nodes = sys.argv[1:]
    sys.path.insert(0, app_dir)
    import importlib
    import tomllib
    from pathlib import Path

    from flwr.app import ConfigRecordValues, Context
    from flwr.serverapp import Grid, ServerApp
    from flwr.simulation import run_simulation

    project = tomllib.loads(Path(app_dir, "pyproject.toml").read_text())["tool"]["flwr"]
    loaded = {}
    for part, reference in project["app"]["components"].items():
        module, name = reference.split(":")
        loaded[part] = getattr(importlib.import_module(module), name)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        """Give the app its run-config, which run_simulation leaves empty."""
        context.run_config.update(project["app"]["config"])
        context.run_config["final-model"] = final_model
        loaded["serverapp"](grid=grid, context=context)

    # One worker, which imports torch once.
    resources: dict[str, dict[str, ConfigRecordValues]] = {
        "init_args": {"num_cpus": 1},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server, loaded["clientapp"], int(num_nodes), "ray", resources)
