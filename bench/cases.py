"""What is measured, as data: a FLUX transformer's shape, the sizes of a request, and what follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vitrify.engine.errors import RequestError

__all__ = [
    "CASES",
    "COMPONENT_CASES",
    "EMOJI",
    "FLUX_146M",
    "FLUX_DEV",
    "Case",
    "Encoders",
    "Kind",
    "TransformerShape",
    "case",
    "from_json",
    "to_json",
]

Kind = Literal["step", "picture"]
"""What is timed: a denoising step, or whole pictures from prompt to uint8."""

Encoders = Literal["small", "flux-dev"]
"""What stands around a random transformer: the smallest encoders and VAE that fit, or FLUX.1-dev's, of T5 two of 24 blocks."""

_TIME_CHANNELS = 256  # sinusoids that the timestep and guidance embedders take


@dataclass(frozen=True)
class TransformerShape:
    """A FLUX transformer's configuration (Black Forest Labs, FLUX.1, 2024), under short names."""

    heads: int
    head_dim: int
    joint_dim: int
    pooled_dim: int
    in_channels: int
    guidance: bool
    rope_axes: tuple[int, ...]
    double_blocks: int
    single_blocks: int

    @property
    def width(self) -> int:
        """Channels of a token inside the transformer."""
        return self.heads * self.head_dim

    def config(self) -> dict[str, Any]:
        """The config.json of diffusers' FluxTransformer2DModel."""
        return {
            "_class_name": "FluxTransformer2DModel",
            "attention_head_dim": self.head_dim,
            "axes_dims_rope": list(self.rope_axes),
            "guidance_embeds": self.guidance,
            "in_channels": self.in_channels,
            "joint_attention_dim": self.joint_dim,
            "num_attention_heads": self.heads,
            "num_layers": self.double_blocks,
            "num_single_layers": self.single_blocks,
            "out_channels": None,
            "patch_size": 1,
            "pooled_projection_dim": self.pooled_dim,
        }

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        w = self.width

        def linear(rows: int, columns: int) -> int:
            return rows * columns + rows

        embedder = linear(w, _TIME_CHANNELS) + linear(w, w)
        text_embedder = linear(w, self.pooled_dim) + linear(w, w)
        around = (
            (2 if self.guidance else 1) * embedder
            + text_embedder
            + linear(w, self.in_channels)
            + linear(w, self.joint_dim)
            + linear(2 * w, w)
            + linear(self.in_channels, w)
        )
        stream = linear(6 * w, w) + 4 * linear(w, w) + 2 * self.head_dim + linear(4 * w, w) + linear(w, 4 * w)
        single = linear(3 * w, w) + 3 * linear(w, w) + 2 * self.head_dim + linear(4 * w, w) + linear(w, 5 * w)
        return around + self.double_blocks * 2 * stream + self.single_blocks * single

    def flops(self, batch: int, image_tokens: int, text_tokens: int) -> int:
        """Multiplications and additions of the matrix products of one unsplit step; what is done once per row is left out."""
        w, tokens = self.width, image_tokens + text_tokens
        around = image_tokens * 2 * self.in_channels * w + text_tokens * self.joint_dim * w
        block = tokens * 12 * w * w + 2 * tokens * tokens * w
        return 2 * batch * (around + (self.double_blocks + self.single_blocks) * block)


@dataclass(frozen=True)
class Case:
    """One thing to measure: a transformer at one size.

    model: the name that its source and its artifact are kept under; cases of one model share them.
    trained: it draws pictures that mean something; else its weights are random. batch: denoiser rows.
    rows, columns: image tokens down and across. pixels_per_token: a token's height and width in the picture.
    steps: of the run that `condition` is spread over, and of a whole picture.
    defaults: request defaults that the artifact carries. prompts: of whole pictures.
    outliers: share of the output channels of random matrices that are 20 times as large.
    encoders: around a transformer that is not trained.
    """

    name: str
    summary: str
    shape: TransformerShape
    trained: bool
    batch: int
    rows: int
    columns: int
    pixels_per_token: int
    text_tokens: int
    steps: int = 20
    defaults: Mapping[str, Any] = field(default_factory=dict)
    kind: Kind = "step"
    model: str = ""
    prompts: tuple[str, ...] = ()
    outliers: float = 0.0
    encoders: Encoders = "small"

    @property
    def model_name(self) -> str:
        """`model`, or the case's own name where it is not set."""
        return self.model or self.name

    @property
    def image_tokens(self) -> int:
        """Tokens of the picture."""
        return self.rows * self.columns

    @property
    def height_px(self) -> int:
        """The picture's height."""
        return self.rows * self.pixels_per_token

    @property
    def width_px(self) -> int:
        """The picture's width."""
        return self.columns * self.pixels_per_token

    @property
    def flops(self) -> int:
        """Of one unsplit step, all rows; see TransformerShape.flops."""
        return self.shape.flops(self.batch, self.image_tokens, self.text_tokens)


EMOJI = TransformerShape(
    heads=6,
    head_dim=32,
    joint_dim=128,
    pooled_dim=96,
    in_channels=32,
    guidance=False,
    rope_axes=(8, 12, 12),
    double_blocks=2,
    single_blocks=8,
)

FLUX_DEV = TransformerShape(
    heads=24,
    head_dim=128,
    joint_dim=4096,
    pooled_dim=768,
    in_channels=64,
    guidance=True,
    rope_axes=(16, 56, 56),
    double_blocks=19,
    single_blocks=38,
)

FLUX_146M = TransformerShape(
    heads=8,
    head_dim=128,
    joint_dim=1024,
    pooled_dim=768,
    in_channels=64,
    guidance=True,
    rope_axes=(16, 56, 56),
    double_blocks=2,
    single_blocks=4,
)

_SAMPLE = Case(
    name="sample",
    summary="the sample pipeline, true CFG in one lane",
    shape=EMOJI,
    trained=True,
    batch=2,
    rows=8,
    columns=8,
    pixels_per_token=8,
    text_tokens=16,
    defaults={"num_inference_steps": 20, "true_cfg_scale": 2.0, "negative_prompt": ""},
)

_FLUX_146M = Case(
    name="flux-146m",
    summary="a random FLUX transformer of width 1024",
    shape=FLUX_146M,
    trained=False,
    batch=1,
    rows=32,
    columns=32,
    pixels_per_token=16,
    text_tokens=128,
    defaults={"num_inference_steps": 20},
)

CASES: Mapping[str, Case] = {
    one.name: one
    for one in (
        _SAMPLE,
        _FLUX_146M,
        replace(
            _FLUX_146M,
            name="flux-146m-outliers",
            summary="the same with outliers: one output channel in a hundred, 20 times as large",
            outliers=0.01,
        ),
        replace(
            _SAMPLE,
            name="sample-pictures",
            summary="whole pictures of the sample pipeline, prompt to uint8",
            kind="picture",
            model="sample",
            prompts=("red apple", "cat face", "rocket", "Hamburger"),
        ),
    )
}

COMPONENT_CASES: Mapping[str, Case] = {
    one.name: one
    for one in (
        replace(CASES["sample-pictures"], name="sample", summary="the sample's encoders and VAE, 64 x 64"),
        Case(
            name="flux-dev",
            summary="FLUX.1-dev's CLIP, two of its T5's 24 blocks at 512 tokens, and its VAE at 256 x 256, with random weights",
            shape=TransformerShape(
                heads=4,
                head_dim=32,
                joint_dim=4096,
                pooled_dim=768,
                in_channels=64,
                guidance=True,
                rope_axes=(8, 12, 12),
                double_blocks=1,
                single_blocks=1,
            ),
            trained=False,
            batch=1,
            rows=16,
            columns=16,
            pixels_per_token=16,
            text_tokens=512,
            steps=1,
            kind="picture",
            model="flux-dev-encoders",
            prompts=("red apple",),
            encoders="flux-dev",
        ),
    )
}
"""What `bench components` takes: the models around a transformer, which matters little there."""


def case(name: str) -> Case:
    """The case called `name`. Raises RequestError listing those there are."""
    if name not in CASES:
        raise RequestError(f"case {name!r} is unknown; known: {', '.join(CASES)}")
    return CASES[name]


def to_json(one: Case) -> dict[str, Any]:
    """A case for another process."""
    return asdict(one)


def from_json(data: Mapping[str, Any]) -> Case:
    """What `to_json` wrote."""
    shape = TransformerShape(**{**data["shape"], "rope_axes": tuple(data["shape"]["rope_axes"])})
    return Case(**{**data, "shape": shape, "prompts": tuple(data["prompts"])})
