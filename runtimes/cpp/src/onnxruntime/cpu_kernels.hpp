// l4export's own CPU kernels (libl4cpu.so), for sessions whose graph has their operators.
#pragma once

#include "onnxruntime/inference_session.hpp"

namespace l4 {

// Give the operators of domain l4.cpu to a session with these options. The library is the one that the environment
// variable L4EXPORT_CPU_KERNELS names; else the one beside this library or program, or in `lib` beside its directory;
// else the one that the loader finds. It stays loaded until the process ends. Raises Error (L4_ENVIRONMENT): there is
// none, it is for another processor, or ONNX Runtime does not take it.
void add_cpu_kernels(const OnnxRuntime& runtime, const SessionOptions& options);

}  // namespace l4
