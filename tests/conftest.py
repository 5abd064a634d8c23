"""What holds for every test: no network, no telemetry, no warnings from fork-happy tokenizers."""

import os

# Set before any test imports a library that reads them.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
)
