"""`--target compressed-tensors`: a checkpoint that vLLM, SGLang and transformers load.

The rooms: `schemes` says which linear layer is stored how, `tensors` which tensors that makes, `shards` where they go,
`quantization_config` how config.json tells the loaders.
"""
