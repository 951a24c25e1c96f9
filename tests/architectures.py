"""Tiny models of many architectures: what each needs to be small, and how its blocks are found by hand."""

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.tiny import VOCAB

ENDS = sorted(range(2, 24))
_SPECIAL: dict[str, Any] = {"vocab_size": VOCAB, "initializer_range": 0.3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_USUAL: dict[str, Any] = _SPECIAL | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}
# A window that is shorter than most rows.
_WINDOW: dict[str, Any] = {"sliding_window": 6}
_WINDOWS = _WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2}
_HEADS: dict[str, Any] = {"head_dim": 8}
_LATENT: dict[str, Any] = {
    "num_key_value_heads": 4,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_GPT: dict[str, Any] = _SPECIAL | {"n_embd": 32, "n_layer": 4, "n_head": 4, "n_positions": 128}
_MAMBA: dict[str, Any] = _SPECIAL | {"hidden_size": 32, "state_size": 8, "num_hidden_layers": 4, "expand": 2}
_MIXED: dict[str, Any] = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
_MIXED2 = _MIXED | {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
_DELTA: dict[str, Any] = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_ONE_GROUP: dict[str, Any] = {"n_group": 1, "topk_group": 1}


def _usual(*parts: dict[str, Any], without: str = "", **more: Any) -> dict[str, Any]:
    whole = _USUAL | {key: each for part in parts for key, each in part.items()} | more
    return {key: each for key, each in whole.items() if key != without}


_GEMMA3 = _usual(_WINDOWS, _HEADS)
_LLAMA4 = _usual(_HEADS, num_local_experts=4, num_experts_per_tok=1, intermediate_size_mlp=48, attention_chunk_size=64)
_QWEN35 = _usual(_HEADS, _DELTA)
_GEMMA4 = _usual(
    _WINDOWS, _HEADS, global_head_dim=8, num_kv_shared_layers=2, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB
)
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# Model type → its configuration's keys.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    # Attention in every block, and one feed-forward layer.
    "apertus": _usual(),
    "arcee": _usual(),
    "biogpt": _usual(without="num_key_value_heads"),
    "bitnet": _usual(),
    "bloom": _SPECIAL | {"hidden_size": 32, "n_layer": 4, "n_head": 4},
    "codegen": _GPT | {"n_ctx": 128, "rotary_dim": 4},
    "cohere": _usual(),
    "cohere2": _usual(_WINDOW),
    "diffllama": _usual(),
    "ernie4_5": _usual(),
    "exaone4": _usual(_WINDOW),
    "falcon": _usual(without="intermediate_size"),
    "gemma": _usual(_HEADS),
    "gemma2": _usual(_WINDOW, _HEADS),
    "gemma3_text": _GEMMA3,
    "gemma4_text": _GEMMA4,
    "glm": _usual(_HEADS),
    "glm4": _usual(_HEADS),
    "gpt2": _GPT,
    "gpt_bigcode": _GPT,
    "gpt_neo": _SPECIAL
    | {"hidden_size": 32, "intermediate_size": 48, "num_layers": 4, "num_heads": 4, "window_size": 6, "max_position_embeddings": 128}
    | {"attention_types": [[["global", "local"], 2]]},
    "gpt_neox": _usual(without="num_key_value_heads"),
    "gptj": _GPT | {"rotary_dim": 4},
    "granite": _usual(),
    "helium": _usual(_HEADS),
    "hunyuan_v1_dense": _usual(_HEADS),
    "jais2": _usual(),
    "llama": _usual(),
    "minicpm3": _usual(_LATENT, head_dim=12),
    "ministral3": _usual(_HEADS),
    "mistral": _usual(_WINDOW, _HEADS),
    "mpt": _SPECIAL | {"d_model": 32, "n_layers": 4, "n_heads": 4, "max_seq_len": 128, "expansion_ratio": 2},
    "nanochat": _usual(),
    "nemotron": _usual(_HEADS),
    "olmo": _usual(),
    "olmo2": _usual(),
    "olmo3": _usual(_WINDOW),
    "opt": _usual(ffn_dim=48, word_embed_proj_dim=32),
    "persimmon": _usual(without="num_key_value_heads"),
    "phi": _usual(without="num_key_value_heads"),
    "phi3": _usual(),
    "qwen2": _usual(),
    "qwen3": _usual(head_dim=12),
    "seed_oss": _usual(_HEADS),
    "smollm3": _usual(),
    "stablelm": _usual(),
    "starcoder2": _usual(),
    "vaultgemma": _usual(_WINDOW, _HEADS),
    "xglm": _SPECIAL
    | {"d_model": 32, "ffn_dim": 48, "num_layers": 4, "attention_heads": 4, "max_position_embeddings": 128, "init_std": 0.3},
    # Experts.
    "dbrx": _SPECIAL
    | {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 128}
    | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32}}
    | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 1e4}},
    "deepseek_v2": _usual(_ROUTED, _LATENT, n_group=2, topk_group=1, head_dim=4),
    "deepseek_v3": _usual(_ROUTED, _LATENT, n_group=2, topk_group=1),
    "dots1": _usual(_ROUTED, _ONE_GROUP),
    "ernie4_5_moe": _usual(moe_num_experts=4, moe_k=2, moe_intermediate_size=16, moe_layer_start_index=1),
    "flex_olmo": _usual(_EXPERTS),
    "glm4_moe": _usual(_ROUTED, _ONE_GROUP, _HEADS),
    "gpt_oss": _usual(_LOCAL, _WINDOW, _HEADS),
    "granitemoe": _usual(_LOCAL),
    "granitemoeshared": _usual(_LOCAL, shared_intermediate_size=16),
    "hunyuan_v1_moe": _usual(_HEADS, num_experts=4, moe_topk=2),
    "jetmoe": _usual(_LOCAL, kv_channels=8, without="num_attention_heads"),
    "llama4_text": _LLAMA4,
    "minimax_m2": _usual(_LOCAL, _HEADS),
    "mixtral": _usual(_LOCAL),
    "olmoe": _usual(_EXPERTS),
    "phimoe": _usual(_LOCAL),
    "qwen2_moe": _usual(_EXPERTS, shared_expert_intermediate_size=16),
    "qwen3_moe": _usual(_EXPERTS, _HEADS),
    # Recurrent blocks, alone or among others.
    "bamba": _usual(_MIXED2, attn_layer_indices=[1, 3]),
    "falcon_h1": _usual(_MIXED2, _HEADS, mamba_d_ssm=32, mamba_n_heads=4),
    "falcon_mamba": _MAMBA,
    "granitemoehybrid": _usual(_MIXED2, _LOCAL, shared_intermediate_size=16, layer_types=["mamba", "attention"] * 2),
    "jamba": _usual(_MIXED, num_experts=4, num_experts_per_tok=2, use_mamba_kernels=False, mamba_dt_rank=4)
    | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "lfm2": _usual(layer_types=["conv", "full_attention"] * 2, conv_L_cache=3, block_auto_adjust_ff_dim=False),
    "lfm2_moe": _usual(_EXPERTS, layer_types=["conv", "full_attention"] * 2, conv_L_cache=3, num_dense_layers=1),
    "lfm3": _usual(),
    "mamba": _MAMBA,
    "mamba2": _MAMBA | {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "minimax": _usual(_LOCAL, _HEADS, block_size=8, layer_types=["full_attention", "linear_attention"] * 2),
    "nemotron_h": _usual(_HEADS, layers_block_type=["mamba", "attention", "mlp", "mamba"], mamba_num_heads=8, mamba_head_dim=8)
    | {"n_groups": 1, "ssm_state_size": 8, "chunk_size": 8, "conv_kernel": 4},
    "olmo_hybrid": _usual(),
    "qwen3_5_text": _QWEN35,
    "qwen3_next": _usual(_EXPERTS, _DELTA, _HEADS, shared_expert_intermediate_size=16),
    "recurrent_gemma": _usual(_HEADS, lru_width=32, attention_window_size=16, block_types=["recurrent", "attention"]),
    "rwkv": {"vocab_size": VOCAB, "context_length": 128, "hidden_size": 32, "num_hidden_layers": 4, "attention_hidden_size": 32}
    | {"intermediate_size": 48, "bos_token_id": 1, "eos_token_id": 2},
    "zamba2": _usual(mamba_d_state=8, mamba_d_conv=4, mamba_expand=2, n_mamba_heads=8, mamba_ngroups=1, chunk_size=8)
    | {"layers_block_type": ["mamba", "hybrid"] * 2, "num_mem_blocks": 1, "attention_hidden_size": 64, "use_mem_rope": True},
    # A text model with a tower for images.
    "gemma3": {"text_config": _GEMMA3, "vision_config": _TOWER | {"model_type": "siglip_vision_model"}}
    | {"mm_tokens_per_image": 4, "image_token_index": 99},
    "gemma4": {"text_config": _GEMMA4},
    "llama4": {"text_config": _LLAMA4, "vision_config": _TOWER | {"intermediate_size": 64, "vision_output_dim": 16}}
    | {"projector_input_dim": 16, "projector_output_dim": 16},
}
# Those that cannot be read, and what is said of them.
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "gemma3n_text": (
        _usual(_WINDOWS, _HEADS, num_kv_shared_layers=0, hidden_size_per_layer_input=8, vocab_size_per_layer_input=VOCAB, laurel_rank=4)
        | {"altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4},
        r"Gemma3nForCausalLM: its decoder blocks return \[2, 1, 4, 32\] for 4 tokens of 32 dimensions, and not one residual stream",
    ),
    "mllama": (
        {"text_config": _usual(cross_attention_layers=[1])}
        | {
            "vision_config": _TOWER
            | {"num_global_layers": 1, "attention_heads": 2, "vision_output_dim": 32, "intermediate_layers_indices": [0]}
        },
        "MllamaForCausalLM: its 4 decoder blocks do not run once each and in order",
    ),
}
# In every run of the tests: one of each kind of trouble.
USUAL_RUN = (
    "bamba",  # a step is not what the whole pass says
    "falcon_h1",  # attention and recurrence in one block; a module that PEFT refuses
    "gemma3",  # a tower for images
    "gemma4_text",  # upper blocks read the keys of lower ones
    "gpt2",  # Conv1D
    "granitemoehybrid",  # recurrent blocks and experts
    "llama4_text",  # a router that is a linear layer by its type
    "mamba",  # no attention
    "minicpm3",  # tensors of five dimensions inside
    "minimax",  # a cache of its own
    "mixtral",  # experts in one tensor
    "qwen3_5_text",  # linear attention
    "recurrent_gemma",  # a state in its modules
    "rwkv",  # no cache of a known kind
)


def build(architecture: str) -> PreTrainedModel:
    """Build a random model; equal names, equal weights."""
    keys = ARCHITECTURES[architecture] if architecture in ARCHITECTURES else REFUSED[architecture][0]
    torch.manual_seed(7)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **keys))
    assert model.generation_config is not None
    # Many tokens end an answer, so that some rows end early.
    model.generation_config.eos_token_id = ENDS
    return model.requires_grad_(False).eval()


def blocks_by_hand(model: nn.Module) -> nn.ModuleList:
    """Return the text model's blocks: the oracle must not use the code under test."""
    names = ("layers", "h", "blocks")
    lists = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] in names and "vision" not in name and len(module) == 4
    ]
    assert len(lists) == 1, [name for name, _ in model.named_modules()]
    return lists[0]
