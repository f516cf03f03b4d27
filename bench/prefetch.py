"""Fetch the pretrained pipelines of a run: `python -m bench.prefetch profile=sd15` (or model=NAME,NAME).

Jobs never download: compute nodes often have no network, and a hundred workers should not ask the hub at once. Gated
models need `hf auth login` first. Only the files that the pipeline loads are fetched.
"""

from __future__ import annotations

from bench import hub
from bench.config import ModelConfig, compose_config
from bench.errors import UserError, run_command


def fetch(name: str, model: ModelConfig) -> str:
    """Download a model's pipeline unless it is here; returns the folder. Raises UserError if it cannot be had."""
    from methods.backbones.pretrained import diffusers

    assert model.pretrained is not None
    asked = {key: model.backbone.get(key) for key in ("revision", "variant")}
    try:
        if hub.missing(model.pretrained, model.revision):
            given = {key: value for key, value in asked.items() if value is not None}
            diffusers().DiffusionPipeline.download(model.pretrained, **given)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"pipeline of model {name}, {model.pretrained}: {str(error.__cause__ or error) or repr(error)}"
        ) from error
    if why := hub.missing(model.pretrained, model.revision):
        raise UserError(f"pipeline of model {name}: {why}")
    return str(hub.snapshot(model.pretrained, model.revision))


def main(arguments: list[str]) -> int:
    models = compose_config(arguments, sweep_required=False).model
    for name, model in models.items():
        print(f"{name}: {fetch(name, model) if model.pretrained else 'nothing to fetch'}")
    return 0


if __name__ == "__main__":
    run_command(main)
