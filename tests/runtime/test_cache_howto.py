"""The example of docs/caching.md, run as it stands there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from vitrify.runtime import PixelGenerationContext

PAGE = Path(__file__).parents[2] / "docs" / "caching.md"


def test_the_example(tmp_path: Path) -> None:
    (tmp_path / "transformer").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "MyPipeline", "transformer": ["own", "Transformer"]}))
    (tmp_path / "transformer" / "config.json").write_text("{}")
    save_file({"unused": np.zeros(1, np.float32)}, tmp_path / "transformer" / "model.safetensors")
    (code,) = (block.split("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```python\n")[1:])
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    context = PixelGenerationContext(height=2, width=3, num_images_per_prompt=2, num_inference_steps=100)

    def calls(**options: Any) -> int:
        pipe = names["make"](tmp_path, **options)
        assert pipe.execute(pipe.prepare_inputs(context)).images.shape == (2, 2, 3, 3)
        return int(pipe.calls)

    assert 1 < calls(first_block_caching=True) < 100
    assert 9 <= calls(first_block_caching=True, taylorseer=True) < 100
