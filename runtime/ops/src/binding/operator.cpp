#include "operator.h"

namespace adaptive {

void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = api().error_message(status);
  api().release_status(status);
  throw Failure(message);
}

const char* name_of(Element type) {
  switch (type) {
    case Element::float32: return "float32";
    case Element::uint8: return "uint8";
    case Element::int8: return "int8";
    case Element::int32: return "int32";
    case Element::int64: return "int64";
    case Element::boolean: return "bool";
    case Element::float16: return "float16";
    case Element::float64: return "float64";
    default: return "another type";
  }
}

namespace {

std::string text_of(const int64_t* shape, size_t rank) {
  std::string text = "(";
  for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + (shape[i] == any ? "?" : std::to_string(shape[i]));
  return text + (rank == 1 ? ",)" : ")");
}

bool fits(const int64_t* shape, size_t rank, std::initializer_list<int64_t> expected) {
  if (rank != expected.size()) return false;
  size_t i = 0;
  for (const int64_t size : expected) {
    if (size != any && size != shape[i]) return false;
    ++i;
  }
  return true;
}

}  // namespace

Attributes::Attributes(const char* operator_name, const OrtKernelInfo* info) : info_(info), where_(operator_name) {
  char name[256];
  size_t size = sizeof(name);
  OrtStatus* status = api().node_name(info, name, &size);
  if (status != nullptr) {  // a longer name
    api().release_status(status);
  } else if (size > 1) {
    where_ += " (node " + std::string(name, size - 1) + ")";
  }
}

template <class T>
T Attributes::read(const char* name, const char* kind, T least, T most) const {
  const std::string what = where_ + ": attribute " + name;
  T value;
  OrtStatus* status = api().attribute(info_, name, &value);
  if (status != nullptr) {
    api().release_status(status);
    throw Failure(what + ", " + kind + ", is missing or of another type");
  }
  if (value >= least && value <= most) return value;  // false for NaN
  throw Failure(what + " is " + std::to_string(value) + ", expected " + std::to_string(least) + " to " +
                std::to_string(most));
}

int64_t Attributes::integer(const char* name, int64_t least, int64_t most) const {
  return read(name, "an integer", least, most);
}

float Attributes::real(const char* name, float least, float most) const { return read(name, "a float", least, most); }

void infer_types(const Port* outputs, size_t count, const OrtShapeInferContext* context) {
  for (size_t i = 0; i < count; ++i) {
    if (outputs[i].type != Element::any) continue;
    OrtTensorTypeAndShapeInfo* info = nullptr;
    check(api().inferred_input(context, static_cast<size_t>(outputs[i].like), &info));
    check(api().infer_output(context, i, info));
  }
}

Call::Call(const std::string& where, const Port* inputs, const Port* outputs, OrtKernelContext* context)
    : where_(where), inputs_(inputs), outputs_(outputs), context_(context) {
  check(api().input_count(context, &num_inputs_));
  check(api().output_count(context, &num_outputs_));
}

Tensor<const void> Call::value(size_t index, Element expected) const {
  const OrtValue* value = nullptr;
  if (index < num_inputs_) check(api().input(context_, index, &value));
  if (value == nullptr) {
    if (inputs_[index].presence == Presence::required) fail_input(index, "is missing");
    return {};
  }
  Tensor<const void> tensor;
  tensor.present = true;
  check(api().type_and_shape(value, &tensor.type, &tensor.shape, &tensor.rank));
  if (expected != Element::any && tensor.type != expected) {
    fail_input(index, std::string("holds ") + name_of(tensor.type) + ", expected " + name_of(expected));
  }
  void* data = nullptr;
  check(api().data(const_cast<OrtValue*>(value), &data));  // the ABI has one entry for reading and writing
  tensor.data = data;
  return tensor;
}

Tensor<const void> Call::value(size_t index, Element expected, std::initializer_list<int64_t> shape) const {
  const Tensor<const void> tensor = value(index, expected);
  if (tensor.present && !fits(tensor.shape, tensor.rank, shape)) {
    fail_input(index, "has shape " + text_of(tensor.shape, tensor.rank) + ", expected " +
                          text_of(shape.begin(), shape.size()));
  }
  return tensor;
}

Tensor<void> Call::result(size_t index, std::initializer_list<int64_t> shape) const {
  Tensor<void> tensor;
  OrtValue* value = nullptr;
  if (index < num_outputs_) check(api().output(context_, index, shape.begin(), shape.size(), &value));
  if (value == nullptr) return tensor;  // only an optional one: ONNX Runtime refuses a node without the others
  check(api().data(value, &tensor.data));
  tensor.rank = shape.size();
  tensor.type = outputs_[index].type;
  tensor.present = true;
  return tensor;
}

}  // namespace adaptive
