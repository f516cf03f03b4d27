"""Download pretrained weights: `python -m bench.prefetch profile=sd15` (or model=NAME,NAME), `metric=lpips,fid`.

Jobs never download anything: compute nodes often have no network, and a hundred workers must not load from a hub at the
same time. For a pretrained pipeline, only the files that it loads are fetched, into the Hugging Face cache. Gated
models need `hf auth login` first. The weights of metrics go to torch's cache (CLIP's to Hugging Face's) and are checked
by the sha256 in their name.
"""

from __future__ import annotations

from bench import hub
from bench.arguments import own_arguments
from bench.columns import METRICS
from bench.errors import UserError, run_command
from bench.files import sha256
from bench.spec.compose import compose_config
from bench.spec.config import ModelConfig
from bench.spec.metrics import declared
from bench.weights import Pretrained, Weights


def fetch(name: str, model: ModelConfig) -> str:
    """Download a model's pipeline if it is missing, and return its folder. Raises UserError if that fails."""
    from methods.backbones.pretrained import diffusers

    assert model.pretrained is not None
    wanted = {key: model.backbone.get(key) for key in ("revision", "variant")}
    try:
        if hub.missing(model.pretrained, model.revision):
            given = {key: value for key, value in wanted.items() if value is not None}
            diffusers().DiffusionPipeline.download(model.pretrained, use_safetensors=True, **given)
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"pipeline of model {name}, {model.pretrained}: {str(error.__cause__ or error) or repr(error)}"
        ) from error
    if why := hub.missing(model.pretrained, model.revision):
        raise UserError(f"pipeline of model {name}: {why}")
    return str(hub.snapshot(model.pretrained, model.revision))


def fetch_metric(name: str) -> str:
    """Download a metric's weights if they are missing, and return their path. Raises UserError if that fails."""
    needs = declared(name).needs
    if isinstance(needs, Weights):
        return _file(needs)
    if not isinstance(needs, Pretrained):
        fetched = [known for known, metric in METRICS.items() if isinstance(metric.needs, (Weights, Pretrained))]
        raise UserError(f"metric={name} needs no weights that can be fetched; allowed: {', '.join(sorted(fetched))}")
    if needs.missing:
        try:
            from huggingface_hub import snapshot_download

            snapshot_download(needs.name, allow_patterns=["*.json", "*.txt", "model.safetensors"])
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"{needs.what}, {needs.name}: {str(error.__cause__ or error) or repr(error)}") from error
    return str(hub.snapshot(needs.name))


def _file(weights: Weights) -> str:
    """Download a file of weights if it is missing, check its sha256 against its name, and return its path."""
    from torch.hub import download_url_to_file

    path = weights.path
    if weights.missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            download_url_to_file(weights.url, str(path), hash_prefix=weights.sha256, progress=False)
        except (OSError, RuntimeError) as error:
            raise UserError(f"{weights.what}, {weights.url}: {error}") from error
    elif not sha256(path).startswith(weights.sha256):
        raise UserError(f"{weights.what}: {str(path)!r} is damaged (its sha256 is wrong); remove it and try again")
    return str(path)


def main(arguments: list[str]) -> int:
    given, others = own_arguments(arguments, {"metric": ""})
    metrics = [name for name in given["metric"].split(",") if name]
    for name in metrics:
        print(f"{name}: {fetch_metric(name)}")
    if metrics and not others:
        return 0
    for name, model in compose_config(others, sweep_required=False, own=given).model.items():
        print(f"{name}: {fetch(name, model) if model.pretrained else 'nothing to fetch'}")
    return 0


if __name__ == "__main__":
    run_command(main)
