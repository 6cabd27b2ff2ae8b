#include "onnxruntime/binding.hpp"

#include <utility>

namespace l4 {

Binding::Binding(std::shared_ptr<const InferenceSession> session)
    : session_(std::move(session)), binding_(nullptr, session_->runtime()->api().ReleaseIoBinding) {
  OrtIoBinding* binding = nullptr;
  session_->runtime()->check(session_->runtime()->api().CreateIoBinding(session_->get(), &binding));
  binding_.reset(binding);
}

void Binding::bind_input(const char* name, const OrtValue* value) {
  session_->runtime()->check(session_->runtime()->api().BindInput(binding_.get(), name, value));
}

void Binding::bind_output(const char* name, const OrtValue* value) {
  session_->runtime()->check(session_->runtime()->api().BindOutput(binding_.get(), name, value));
}

void Binding::run(const RunOptions& options) {
  session_->runtime()->check(
      session_->runtime()->api().RunWithBinding(session_->get(), options.get(), binding_.get()));
}

}  // namespace l4
