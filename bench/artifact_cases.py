"""Cases made from a user's own artifact: its transformer at the sizes it was compiled for, a step and whole pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vitrify.bench.cases import Case, TransformerShape
from vitrify.engine.artifact import Artifact
from vitrify.engine.errors import RequestError

__all__ = ["artifact_cases"]

_STEPS = 20
_FAMILY = "flux"


def artifact_cases(folder: Path, prompts: tuple[str, ...], steps: int | None = None) -> tuple[Case, Case]:
    """(a step, whole pictures of `prompts`) of the artifact at `folder`, at its optimal sizes and with its request defaults.

    Cases are called `artifact` and `artifact-pictures`, so that documents of one model compare wherever it lies.
    steps: of a picture; None: the artifact's default. Raises ArtifactError, and RequestError for another family than FLUX.
    """
    manifest = Artifact.open(folder).manifest
    if manifest.family != _FAMILY:
        raise RequestError(f"{folder}: an artifact of family {manifest.family!r}; peers are known for {_FAMILY!r} alone")
    config = manifest.components["transformer"].config
    defaults = {name: value for name, value in manifest.defaults.items() if name in ("true_cfg_scale", "negative_prompt")}
    steps = steps or int(manifest.defaults.get("num_inference_steps", _STEPS))
    guided = float(defaults.get("true_cfg_scale", 1.0)) > 1 and defaults.get("negative_prompt") is not None
    rows, columns = manifest.dims["latent_h"].opt // 2, manifest.dims["latent_w"].opt // 2
    given: dict[str, Any] = {
        "shape": _shape(config),
        "trained": True,
        "batch": 2 if guided and manifest.dims["batch"].max >= 2 else 1,
        "rows": rows,
        "columns": columns,
        "pixels_per_token": manifest.dims["height"].opt // rows,
        "text_tokens": manifest.dims["text_tokens"].opt,
        "steps": steps,
        "defaults": defaults,
        "model": "artifact",
    }
    return (
        Case(name="artifact", summary="a step of the given artifact", **given),
        Case(name="artifact-pictures", summary="whole pictures of the given artifact", kind="picture", prompts=prompts, **given),
    )


def _shape(config: Any) -> TransformerShape:
    return TransformerShape(
        heads=int(config["num_attention_heads"]),
        head_dim=int(config["attention_head_dim"]),
        joint_dim=int(config["joint_attention_dim"]),
        pooled_dim=int(config["pooled_projection_dim"]),
        in_channels=int(config["in_channels"]),
        guidance=bool(config["guidance_embeds"]),
        rope_axes=tuple(int(dim) for dim in config["axes_dims_rope"]),
        double_blocks=int(config["num_layers"]),
        single_blocks=int(config["num_single_layers"]),
    )
