"""Print the packages that `make test-gpu` needs and this Python lacks; onnxruntime-gpu and torch are not asked for."""

from importlib.util import find_spec

NEEDED = {
    "click": "click",
    "ml_dtypes": "ml-dtypes",
    "numba": "numba",
    "onnx": "onnx",
    "onnx_ir": "onnx-ir",
    "PIL": "pillow",
    "pytest": "pytest",
    "rich": "rich",
    "tokenizers": "tokenizers",
    "transformers": "transformers",
    "xdist": "pytest-xdist",
}
"""Modules, and what installs them."""

print(*(package for module, package in NEEDED.items() if find_spec(module) is None))
