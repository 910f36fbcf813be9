"""The side memory beside vLLM's own value projection: an out-of-tree layer, and one operator that adds rows to it.

`register` is the entry point that vLLM calls in each of its processes. It gives vLLM a subclass of its
`RowParallelLinear`, which is that layer everywhere but at the edited place. There it wraps the layer's `quant_method`,
so that LoRA's layers, which call that method themselves, pass it too.

The operator adds a buffer that was filled before the step. So it is the same computation in eager mode, in a compiled
graph and in a CUDA graph that is replayed, and it does not matter how the projection is quantized.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from wise.errors import ConfigError

TESTED = ("0.32",)
"""Releases of vLLM in which the tests of this plug-in have run."""
ANY_VERSION = "WISE_VLLM_ANY_VERSION"
"""Environment variable: 1 allows other releases."""
LAYER = "RowParallelLinear"
_additions: dict[str, Addition] = {}
"""Of this process, by the path of the layer."""


class Addition:
    """The rows to add to one layer's output in the next forward pass, and the check that they were added."""

    def __init__(self, tokens: int, width: int, *, dtype: torch.dtype, device: torch.device | None, adds: bool) -> None:
        """tokens: the most of one forward pass; width: d; adds: whether this rank adds. Only the first rank adds, since
        the outputs of all ranks are summed."""
        self.adds, self.width = adds, width
        self._buffer = torch.zeros(tokens if adds else 0, width, dtype=dtype, device=device)
        self._passes = torch.zeros((), dtype=torch.int64, device=device)
        """Counted where the sum is computed, since Python does not run when a graph is replayed."""
        self._rows: list[int] = []

    def prepare(self, rows: Sequence[int], values: Sequence[Tensor]) -> None:
        """Has the next forward pass add these values `[d]` to these rows of the output."""
        self.clear()
        if not self.adds or not rows:
            return
        if max(rows) >= len(self._buffer):
            raise RuntimeError(f"row {max(rows)} of a step of at most {len(self._buffer)} tokens")
        self._rows = list(rows)
        self._passes.zero_()
        self._buffer[torch.tensor(self._rows, device=self._buffer.device)] = torch.stack(list(values)).to(self._buffer)

    def clear(self) -> None:
        """Has the next forward pass add nothing."""
        if self._rows:
            self._buffer[torch.tensor(self._rows, device=self._buffer.device)] = 0
            self._rows = []

    def add(self, output: Tensor) -> None:
        """Adds to `[n, d]` in place."""
        if not self.adds or not (self._rows or output.is_cuda):  # a captured graph must contain the sum
            return
        count = min(len(output), len(self._buffer))
        if self._rows and max(self._rows) >= count:
            raise RuntimeError(f"the edited layer gave {count} rows and row {max(self._rows)} is edited")
        output[:count].add_(self._buffer[:count])
        self._passes.add_(1)

    def check(self) -> None:
        """Raises RuntimeError if the forward pass did not add the edits that were prepared for it."""
        if self._rows and not int(self._passes):
            raise RuntimeError(
                "a step of vLLM passed the edited layer by, and an edit was due in it; set enforce_eager=True, and "
                "report the release of vLLM and its options"
            )


def _add(output: Tensor, layer: str) -> None:
    _additions[layer].add(output)


def _add_nothing(output: Tensor, layer: str) -> None:
    return


def addition_of(layer: str) -> Addition | None:
    """The addition of a layer; None if the layer was not built in this process."""
    return _additions.get(layer)


def check_version(version: str) -> None:
    """Raises ConfigError for a release of vLLM with which wise was not tested."""
    if ".".join(version.split(".")[:2]) not in TESTED and os.environ.get(ANY_VERSION) != "1":
        raise ConfigError(
            f"vLLM {version} is installed and this release of wise was tested with {', '.join(TESTED)}: install that, "
            f"or set {ANY_VERSION}=1, run scripts/check_vllm.py, and read what it reports"
        )


def check_options(config: Any) -> None:
    """config: vLLM's VllmConfig. Raises ConfigError, with the reason, if it cannot be served with edits."""
    parallel, speculative = config.parallel_config, config.speculative_config
    refusals = {
        f"pipeline_parallel_size={parallel.pipeline_parallel_size}: the stages of a pipeline are at different steps, "
        "which was not tested": parallel.pipeline_parallel_size > 1,
        f"prefill_context_parallel_size={parallel.prefill_context_parallel_size}: a worker sees parts of a prompt": (
            parallel.prefill_context_parallel_size > 1
        ),
        "data parallel engines of several front ends: each would follow the store alone; let one front end have all, "
        "or run replicas of the service on one store": parallel.local_engines_only,
        "enable_elastic_ep: an engine that comes later would not be given the edits": parallel.enable_elastic_ep,
        "dual batch overlap: a step's tokens reach the edited layer in parts": parallel.use_ubatching,
        "kv_sharing_fast_prefill: later blocks do not run all tokens of a step": (
            config.cache_config.kv_sharing_fast_prefill
        ),
        "prompt embeddings: edits go by token ids": config.model_config.enable_prompt_embeds,
        f"quantization={config.model_config.quantization!r}: edits are fitted on the base as transformers runs it, and "
        "none was tried on one that vLLM quantizes": config.model_config.quantization is not None,
        "speculative decoding with async scheduling: the number of tokens that were kept is not known before the step; "
        "set async_scheduling=False": bool(speculative and config.scheduler_config.async_scheduling),
        "enable_adaptive_verification: which drafts a step has is decided on the GPU": bool(
            speculative and speculative.enable_adaptive_verification
        ),
    }
    for reason, applies in refusals.items():
        if applies:
            raise ConfigError(f"vLLM with edits refuses {reason}")


def register() -> None:
    """The entry point `vllm.general_plugins`. May be called more than once."""
    from vllm.model_executor.custom_op import PluggableLayer, op_registry_oot
    from vllm.model_executor.layers.linear import RowParallelLinear

    registered = op_registry_oot.pop(LAYER, None)  # a platform may have brought its own
    if registered is not None and getattr(registered, "wise", False):
        op_registry_oot[LAYER] = registered
        return
    PluggableLayer.register_oot(name=LAYER)(_layer_class(registered or RowParallelLinear))


def options_of(config: Any) -> dict[str, Any] | None:
    """The options that `wise.vllm.requests.engine_options` put into an engine's VllmConfig; None if there are none."""
    additional = config.additional_config
    return additional.get("wise") if isinstance(additional, dict) else None


def _layer_class(base_class: Any) -> Any:
    class EditedRowParallelLinear(base_class):  # type: ignore[misc]
        wise = True

        def __init__(self, *args: Any, prefix: str = "", **options: Any) -> None:
            super().__init__(*args, prefix=prefix, **options)
            from vllm.config import get_current_vllm_config

            config = get_current_vllm_config()
            wise_options = options_of(config)
            if wise_options and wise_options["layer"] == prefix:
                _install(self, prefix, config)

    return EditedRowParallelLinear


def _install(layer: Any, prefix: str, config: Any) -> None:
    import vllm
    from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
    from vllm.utils.torch_utils import direct_register_custom_op

    check_version(vllm.__version__)
    check_options(config)
    if not hasattr(torch.ops.vllm, "wise_add"):
        direct_register_custom_op("wise_add", _add, mutates_args=["output"], fake_impl=_add_nothing)

    class AddingMethod(QuantizeMethodBase):  # type: ignore[misc]
        """The layer's own method; the side memory is added to its output."""

        def __init__(self, base_method: Any) -> None:
            self.base_method = base_method

        def create_weights(self, *args: Any, **options: Any) -> Any:
            return self.base_method.create_weights(*args, **options)

        def process_weights_after_loading(self, layer: Any) -> Any:
            return self.base_method.process_weights_after_loading(layer)

        def apply(self, layer: Any, *args: Any, **options: Any) -> Any:
            output = self.base_method.apply(layer, *args, **options)
            torch.ops.vllm.wise_add(output, prefix)
            return output

        def __getattr__(self, name: str) -> Any:
            if name == "base_method":
                raise AttributeError(name)
            return getattr(self.base_method, name)

    layer.quant_method = AddingMethod(layer.quant_method)
    _additions[prefix] = Addition(
        config.scheduler_config.max_num_batched_tokens,
        layer.output_size,
        dtype=layer.params_dtype,
        device=torch.get_default_device(),
        adds=layer.tp_rank == 0,
    )
