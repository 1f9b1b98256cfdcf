"""What the neuron refuses besides what `errors` lists: status and code, in one place."""

from __future__ import annotations

from cortexd.errors import Kind

UNAUTHORIZED = Kind("unauthorized", 401)
UNKNOWN_HARNESS = Kind("unknown_harness", 422)
UNKNOWN_DEVICE = Kind("unknown_device", 422)
NO_SUCH_QUANT = Kind("no_such_quant", 422)
LOAD_FAILED = Kind("load_failed", 500)
LOAD_CANCELLED = Kind("load_cancelled", 503, retry_after=1)
CUDA_UNAVAILABLE = Kind("cuda_unavailable", 503)
INSUFFICIENT_VRAM = Kind("insufficient_vram", 507)
MODEL_TOO_LARGE = Kind("model_too_large", 422)  # for this host, whichever models are unloaded
