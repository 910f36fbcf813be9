"""A tiny random model of every causal language model that transformers has.

The default configuration of each type is made small by the names of its fields, at every depth. `EXCEPTIONS` holds what
the names do not tell. A model has `DEPTH` blocks, and every kind of block that its type has.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from tiny import BOS, EOS, PAD, draw_weights
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

DEPTH = 4
WIDTH = 64
VOCABULARY = 128
"""Larger than that of `tiny_tokenizer`: the special tokens of other media stand behind its words."""

TOKENS = {"pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}

SIZES: dict[str, int] = {
    r"\w*vocab_size\w*|codebook_size|num_embeddings": VOCABULARY,
    r"num_hidden_layers|n_layers?|num_layers|num_blocks|depth|layers|(num_)?(de|en)coder_layers": DEPTH,
    r"n_(input|output|recurrent)_layers|num_layers_per_stack": 2,
    r"(n_)?mamba_(n_|num_)?heads": 8,
    r"qk_(nope|rope)_head_dim|rotary_dim": 8,
    r"\w*head_?dim|mamba_d_head|kv_channels|d_kv|dim_head|d_head|attention_head_size": 16,
    r"(num_|n_)?(key_value|kv)_heads|swa_num_key_value_heads|kv_n_heads|num_sliding_key_value_heads": 2,
    r"(num_|n_)?(\w+_)?heads?|linear_num_\w+_heads": 4,
    r"\w+_rank|hc_lowrank": 16,
    r"codebook_dim|adapter_(in|out|input)_(dim|size)": WIDTH,
    r"(moe|\w*shared|\w*expert)\w*_(intermediate_size|dim)|expert_ffn_hidden_size": 32,
    r"\w*intermediate_size\w*|\w*ffn_dim|ffn_hidden_size|d_ff|dff|dim_ff|d_inner|n_inner|mlp_dim": 128,
    r"mamba_d_ssm|feed_forward_size": 128,
    r"\w*hidden_size\w*|d_model|n_embd|\w*embed_dim|emb_dim|embedding_(dim|size)|lru_width|\w+_embedding_size": WIDTH,
    r"(out|output|projection|projector_\w+)_dim|word_embed_proj_dim": WIDTH,
    r"\w*num_(local_)?experts|n_routed_experts|zero_expert_num": 4,
    r"num_experts_per_tok(en)?|moe_top_?k|moe_k": 2,
    r"n_groups?|num_expert_group|topk_group|mamba_n_?groups|\w*shared_experts|num_kv_shared_layers": 1,
    r"first_k_dense_replace|num_dense_layers|moe_layer_start_index|attn_layer_offset": 1,
    r"mamba_d_state|ssm_state_size|state_size|mamba_chunk_size|chunk_size": 8,
    r"sliding_window(_size)?|attention_window_size|local_attention|index_topk": 6,
    r"max_position_embeddings|n_positions|n_ctx|max_seq_len|context_length": 256,
}
"""Names of fields that hold a number, and the number that they get. The first pattern that fits a whole name counts."""

_TURNED = [4, 2, 2]
_TEXT_TURNED = {"text_config": {"rope_parameters": {"mrope_section": _TURNED}}}
_ATTENTION_AND_CONVOLUTION = {"layer_types": ["conv", "full_attention"] * 2}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
_WIDE_WHERE_FULL = {"per_layer_config": {1: {"head_dim": 32}, 3: {"head_dim": 32}}}
_TWICE_AS_WIDE = {"attention_hidden_size": 2 * WIDTH, "attention_head_dim": 32, "mamba_dt_rank": 8}
_IMAGE_WORDS = {"vocabulary_map": {"<image>": VOCABULARY - 1}, "vq_config": {"base_channels": 32, "resolution": 32}}
_ROUTED = {"n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
_ROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": _TURNED}
_COMPASS = {"rope_parameters": {"full_attention": _ROPE}}
_INDEXER = {"n_heads": 4, "kv_heads": 1, "head_dim": 16, "budget": 8, "compress_ratio": 2}
_INDEXED = {f"indexer_{name}": value for name, value in _INDEXER.items()}
_TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}
_FEWER_HEADS = {"head_dim": 16, "per_layer_config": {1: _TWO_HEADS, 3: _TWO_HEADS}}

EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "chameleon": _IMAGE_WORDS,
    "cohere_compass": {"text_config": _COMPASS},
    "cohere_compass_text": _COMPASS,
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8}},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]} | _ROUTED},
    "deepseek_v2": {"num_experts_per_tok": 2, "topk_group": 1},
    "dory": {"num_hidden_layers": 8, "n_input_layers": 2, "n_recurrent_layers": 4, "n_output_layers": 2}
    | {"layer_types": ["sliding_attention", "mlp", "full_attention", "mlp"] * 2}
    | {"initializer_range": 1.0},  # of which its vectors are multiples: one of 1 is drawn as those of norms are
    "dots1": _ROUTED,
    "dots3_note": {"text_config": _FEWER_HEADS, "audio_config": {"adapter_in_dim": WIDTH, "adapter_out_dim": WIDTH}},
    "dots3_note_text": _FEWER_HEADS,
    "emu3": _IMAGE_WORDS,
    "ernie4_5_vl_moe": {
        "text_config": {"rope_parameters": {"mrope_section": [3, 3, 2]}, "moe_intermediate_size": [32, 32]}
    },
    "gemma4": {"text_config": _WIDE_WHERE_FULL},
    "gemma4_text": _WIDE_WHERE_FULL,
    "gemma4_unified": {"text_config": _WIDE_WHERE_FULL},
    "gemma4_unified_text": _WIDE_WHERE_FULL,
    "glm46v": _TEXT_TURNED,
    "glm4v": _TEXT_TURNED,
    "glm4v_moe": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "glm5_next": {"text_config": {"index_kpool": 2}},
    "glm_ocr": _TEXT_TURNED,
    "glmga": _TEXT_TURNED,
    "granite4_vision": {"deepstack_layer_map": [], "spatial_target_layers": [], "downsample_rate": "4/8"},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"] * 2, "shared_intermediate_size": 32},
    "granitemoeshared": {"shared_intermediate_size": 32},
    "hrm_text": {"num_layers_per_stack": 2, "num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": 16},
    "hunyuan_v1_moe": {"head_dim": 16, "num_experts": 4, "moe_topk": 2},
    "hunyuan_vl": {"text_config": {"head_dim": 16, "rope_parameters": {"mrope_section": _TURNED}}},
    "hy_v4_vl": {"text_config": {"rope_parameters": {"mrope_section": [2, 1, 1]}}},
    "inkling_mm_model": {"vision_config": {"patch_size": 8}},
    "janus": {"vq_config": {"base_channels": 32}},
    "laguna": {"num_attention_heads_per_layer": [4] * DEPTH},
    "lfm2": _ATTENTION_AND_CONVOLUTION,
    "lfm2_moe": _ATTENTION_AND_CONVOLUTION,
    "lfm2_vl": {"text_config": _ATTENTION_AND_CONVOLUTION},
    "mamba2": {"num_heads": 8},
    "ministral": {"head_dim": 16} | _SLIDING,
    "mistral4": {"head_dim": 16},
    "molmo2": {"adapter_config": {"vision_feature_layer": [3, 2]}},
    "muse_spark": {"audio_config": {"hidden_sizes": [16] * 4}},
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl": _TEXT_TURNED,
    "qwen2": _SLIDING | {"use_sliding_window": True},
    "qwen2_5_omni_thinker": _TEXT_TURNED | {"vision_start_token_id": VOCABULARY - 9},
    "qwen2_5_vl": _TEXT_TURNED,
    "qwen2_vl": _TEXT_TURNED,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": VOCABULARY - 9},
    "qwen4_exp": {"text_config": _INDEXED},
    "qwen4_exp_text": _INDEXED,
    "reformer": {"axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 16]},
    "step3p7": {"text_config": {"sliding_window": 6}},
    "xlstm": {"qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": _TWICE_AS_WIDE,
    "zamba2": _TWICE_AS_WIDE,
    "zaya": {"num_experts_per_tok": 1},
}
"""What the names of fields do not tell: sizes that have no default or depend on each other, and kinds of blocks that
the default configuration does not have."""

_NOT_TEXT_ALONE = "does not read text alone"
_ENCODER = "reads the text with an encoder"
_NOT_TEXT = "does not write text token after token"
_TIMM = "its vision tower needs timm"

EXCLUDED: dict[str, str] = {
    "apertus1p5": "its coder of images has no small sizes; `apertus1p5_text` is the same language model",
    "blip": _NOT_TEXT_ALONE,
    "blip-2": _NOT_TEXT_ALONE,
    "blt": "transformers 5.24 cannot make its cache",
    "diffusion_gemma": _NOT_TEXT,
    "evolla": "transformers 5.24 has no class for it",
    "fast_vlm": _TIMM,
    "florence2": _ENCODER,
    "gemma3n": _TIMM,
    "gemma4_assistant": "drafts for another model",
    "gemma4_unified_assistant": "drafts for another model",
    "idefics": _NOT_TEXT_ALONE,
    "instructblip": _NOT_TEXT_ALONE,
    "instructblipvideo": _NOT_TEXT_ALONE,
    "kosmos-2": _NOT_TEXT_ALONE,
    "llama4": "transformers 5.24 cannot run it on text alone",
    "musicgen": _NOT_TEXT,
    "musicgen_melody": _NOT_TEXT,
    "perception_lm": _TIMM,
    "pi0": _NOT_TEXT,
    "pix2struct": _NOT_TEXT_ALONE,
    "pp_formulanet": _NOT_TEXT_ALONE,
    "t5gemma2": _ENCODER,
    "udop": _ENCODER,
    "vision-encoder-decoder": _NOT_TEXT_ALONE,
}
"""Types of the two tables of transformers that are not a causal language model by themselves, and why."""


def model_types() -> list[str]:
    """Every `model_type` of which a model writes text and, at most, looks at images."""
    return sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {*EXCLUDED})


def zoo_config(model_type: str) -> Any:
    """The default configuration of the type, made small."""
    cls = CONFIG_MAPPING[model_type]
    return cls(**_merged(_shrunk(cls().to_dict(), {}), EXCEPTIONS.get(model_type, {})))


def zoo_model(model_type: str) -> PreTrainedModel:
    """A random model in evaluation mode, the same one for the same type."""
    images = model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    auto = AutoModelForImageTextToText if images else AutoModelForCausalLM
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of what is not drawn anew
        model = draw_weights(auto.from_config(zoo_config(model_type)).eval(), 0)
    model.generation_config.update(**TOKENS)  # published models come with it, some configurations have no such field
    return model


def _shrunk(fields: dict[str, Any], special: dict[str, int]) -> dict[str, Any]:
    """What to set otherwise than the default. special: the ids that special tokens have so far."""
    small = {name: _small(name, value, special) for name, value in fields.items()}
    if "qk_rope_head_dim" in fields:  # each head has keys of its own, and `head_dim` is the part that is turned
        small |= {"num_key_value_heads": 4, "head_dim": 8}
    small = {name: value for name, value in small.items() if value is not None and name in fields}
    return small if "model_type" in fields else fields | small


def _small(name: str, value: Any, special: dict[str, int]) -> Any:
    """The value that a field gets; None leaves the default."""
    if name in TOKENS:
        return TOKENS[name]
    if name in ("model_type", "is_decoder"):
        return value or True
    if name == "mrope_section":
        return _TURNED
    if isinstance(value, dict) and name != "per_layer_config" and all(isinstance(key, str) for key in value):
        return _shrunk(value, special)
    if isinstance(value, list) and len(value) > 2 and isinstance(value[0], str):
        kinds = list(dict.fromkeys(value))
        return (kinds[:1] + kinds[-1:] * DEPTH if name == "mlp_layer_types" else kinds * DEPTH)[:DEPTH]
    if isinstance(value, list) and len(value) > DEPTH:
        small = [_small(name, each, special) for each in value[:DEPTH]]
        return None if None in small else small
    if type(value) is not int:
        return None
    if re.fullmatch(r"\w*token_(id|index)|\w+_id", name):
        return special.setdefault(name, VOCABULARY - 1 - len(special))
    return next((size for pattern, size in SIZES.items() if value and re.fullmatch(pattern, name)), None)


def _merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The fields of both, at every depth; where both have one, that of the other."""
    return one | {
        name: _merged(one[name], value) if isinstance(one.get(name), dict) and isinstance(value, dict) else value
        for name, value in other.items()
    }
