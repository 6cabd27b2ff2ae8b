// RegisterCustomOps, which ONNX Runtime calls when a session's options name this library.
#include <map>
#include <mutex>

#include "operators/linear_op.hpp"
#include "operators/mlp_op.hpp"
#include "operators/moe_op.hpp"

namespace l4::cpu {

namespace {

// The domain l4.cpu of one ONNX Runtime, of which a process may have several. It lives as long as the process: sessions
// do not own it.
OrtCustomOpDomain* domain(const OrtApi& api) {
  static std::mutex mutex;
  static std::map<const OrtApi*, OrtCustomOpDomain*> domains;
  static const CustomOp<LinearOp> linear;
  static const CustomOp<MlpOp> mlp;
  static const CustomOp<MoeOp> moe;
  const std::lock_guard<std::mutex> lock(mutex);
  OrtCustomOpDomain*& made = domains[&api];
  if (made == nullptr) {
    check(api, api.CreateCustomOpDomain("l4.cpu", &made));
    const OrtCustomOp* const operators[] = {&linear, &mlp, &moe};
    for (const OrtCustomOp* op : operators) check(api, api.CustomOpDomain_Add(made, op));
  }
  return made;
}

}  // namespace
}  // namespace l4::cpu

extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                              const OrtApiBase* base) {
  using namespace l4::cpu;
  const OrtApi* const api = base->GetApi(kApiVersion);
  if (api == nullptr) return base->GetApi(1)->CreateStatus(ORT_FAIL, "l4.cpu needs ONNX Runtime 1.21 or later");
  return guarded(*api, [&] { check(*api, api->AddCustomOpDomain(options, domain(*api))); });
}
