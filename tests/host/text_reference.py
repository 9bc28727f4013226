"""ComfyUI's own encoding of prompts by a umT5 file, run by ComfyUI's Python in its folder.

``python text_reference.py FILE OUT SHAPE PROMPT …``: SHAPE is JSON that replaces values of ComfyUI's umT5-XXL config.
"""

import json
import os
import sys

import torch


def main() -> None:
    file, out, shape, *prompts = sys.argv[1:]
    sys.argv = sys.argv[:1] + ["--cpu"]
    sys.path.insert(0, os.getcwd())
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.sd
    import comfy.text_encoders.wan as wan
    import comfy.utils
    from safetensors.torch import save_file

    tensors = comfy.utils.load_torch_file(file)
    if hasattr(comfy.utils, "convert_old_quants"):
        tensors, _ = comfy.utils.convert_old_quants(tensors)
    quantized = any(name.endswith(".comfy_quant") for name in tensors)
    options = {"umt5xxl_model_config": json.loads(shape), "model_name": "umt5xxl"}
    metadata = {"t5_quantization_metadata": {"mixed_ops": True}} if quantized else {}
    model = wan.te(dtype_t5=torch.float16, **metadata)(model_options=options)
    missing, _ = model.umt5xxl.load_sd(tensors)
    assert not [name for name in missing if not name.endswith(("comfy_quant", "embed_tokens.weight"))], missing
    tokenizer = wan.WanT5Tokenizer(tokenizer_data={"spiece_model": tensors["spiece_model"]})
    results = {}
    with torch.no_grad():
        for index, prompt in enumerate(prompts):
            states = model.encode_token_weights(tokenizer.tokenize_with_weights(prompt))[0]
            results[str(index)] = states.contiguous()
    save_file(results, out)


if __name__ == "__main__":
    main()
