"""The side memory in vLLM's workers, as a plug-in: `pip install 'wise-runtime[vllm]'`.

It does nothing unless an engine is made with `additional_config={"wise": {...}}`; `requests.engine_options` gives it.
"""
