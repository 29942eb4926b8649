// What an operator is made of: its inputs, outputs and attributes, its errors, and the threads of the session.
//
// An operator is a class with
//   static constexpr const char* kName;
//   static constexpr Port kInputs[], kOutputs[];      // in the order of an enum of their indices
//   explicit Operator(const Attributes&);             // reads the attributes of a node
//   void run(Call&) const;                            // one execution; several threads may run it at once
// and one line `static const Registration<Operator> registration;`. Constructor and run report a fault of the model by
// throwing `Failure`; ONNX Runtime gets it as a status.
#pragma once

#include <algorithm>
#include <atomic>
#include <exception>
#include <initializer_list>
#include <iterator>
#include <limits>
#include <new>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "ort_abi.h"
#include "scratch.h"

namespace adaptive {

// Version of our domain. Changes with the layout of packed matrices and with the meaning of any operator.
constexpr int kVersion = 4;

class Failure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// The table that the library was registered with.
const Api& api();

// Throw the message of an error and release it.
void check(OrtStatus* status);

struct Port {
  const char* name;
  Element type;
  Presence presence = Presence::required;
  int like = -1;  // of an output of any type: the input whose type and shape it has
};

constexpr Presence optional = Presence::optional;
constexpr int64_t any = -1;  // in an expected shape: a dimension of any size

template <class T>
constexpr Element element_of() {
  using Value = std::remove_const_t<T>;
  if constexpr (std::is_same_v<Value, float>) return Element::float32;
  if constexpr (std::is_same_v<Value, double>) return Element::float64;
  if constexpr (std::is_same_v<Value, bool>) return Element::boolean;
  if constexpr (std::is_same_v<Value, uint8_t>) return Element::uint8;
  if constexpr (std::is_same_v<Value, int8_t>) return Element::int8;
  if constexpr (std::is_same_v<Value, int32_t>) return Element::int32;
  if constexpr (std::is_same_v<Value, int64_t>) return Element::int64;
  return Element::any;  // void: the operator looks at `type`
}

const char* name_of(Element type);

template <class T>
struct Tensor {
  T* data = nullptr;
  const int64_t* shape = nullptr;
  size_t rank = 0;
  Element type = Element::any;
  bool present = false;

  explicit operator bool() const { return present; }
  int64_t size() const {
    int64_t product = 1;
    for (size_t i = 0; i < rank; ++i) product *= shape[i];
    return product;
  }
};

// The attributes of one node.
class Attributes {
 public:
  Attributes(const char* operator_name, const OrtKernelInfo* info);

  // Return an attribute within its limits. There are no defaults: they would hide one of another type.
  int64_t integer(const char* name, int64_t least, int64_t most) const;
  float real(const char* name, float least, float most) const;

  // "FeedForward (node layers.3.moe)", with which each message begins.
  const std::string& where() const { return where_; }

 private:
  template <class T>
  T read(const char* name, const char* kind, T least, T most) const;

  const OrtKernelInfo* info_;
  std::string where_;
};

// One execution of a node.
class Call {
 public:
  Call(const std::string& where, const Port* inputs, const Port* outputs, OrtKernelContext* context);

  // Return an input of the given shape; an absent one is an empty tensor if the operator declares it optional.
  template <class T>
  Tensor<const T> input(size_t index, std::initializer_list<int64_t> shape) const {
    const Tensor<const void> tensor = value(index, element_of<T>(), shape);
    return {static_cast<const T*>(tensor.data), tensor.shape, tensor.rank, tensor.type, tensor.present};
  }
  // Return an input of any shape.
  template <class T>
  Tensor<const T> input(size_t index) const {
    const Tensor<const void> tensor = value(index, element_of<T>());
    return {static_cast<const T*>(tensor.data), tensor.shape, tensor.rank, tensor.type, tensor.present};
  }
  // Allocate an output; one that the node does not name is an empty tensor if the operator declares it optional.
  template <class T>
  Tensor<T> output(size_t index, std::initializer_list<int64_t> shape) const {
    const Tensor<void> tensor = result(index, shape);
    return {static_cast<T*>(tensor.data), nullptr, tensor.rank, tensor.type, tensor.present};
  }

  // Throw an error about this node.
  [[noreturn]] void fail(const std::string& message) const { throw Failure(where_ + ": " + message); }
  [[noreturn]] void fail_input(size_t index, const std::string& message) const {
    fail("input " + std::string(inputs_[index].name) + " " + message);
  }

  // Call work(first, last) for contiguous parts of 0..count, on the threads of the session where it pays.
  //
  // `cost` is the number of bytes that the whole of it reads, or its like. The parts do not depend on the number of
  // threads, and `work` must give the same result however the numbers are cut.
  template <class Work>
  void parallel(int64_t count, int64_t cost, const Work& work) const;

 private:
  Tensor<const void> value(size_t index, Element expected) const;
  Tensor<const void> value(size_t index, Element expected, std::initializer_list<int64_t> shape) const;
  Tensor<void> result(size_t index, std::initializer_list<int64_t> shape) const;

  const std::string& where_;
  const Port *inputs_, *outputs_;
  OrtKernelContext* context_;
  size_t num_inputs_ = 0, num_outputs_ = 0;
};

constexpr int64_t kPartCost = 96 << 10;  // bytes that a part reads at least: some 3 us of one core
constexpr int64_t kMostParts = 64;

template <class Work>
void Call::parallel(int64_t count, int64_t cost, const Work& work) const {
  if (count <= 0) return;
  int64_t parts = cost / kPartCost;
  if (parts > kMostParts) parts = kMostParts;
  if (parts > count) parts = count;
  if (parts < 2) {
    work(int64_t{0}, count);
    return;
  }
  struct Section {
    const Work* work;
    int64_t count, parts;
    std::atomic<bool> failed;
  } section{&work, count, parts, {false}};
  const auto run = [](void* data, size_t part) {
    auto& own = *static_cast<Section*>(data);
    const auto i = static_cast<int64_t>(part);
    try {
      (*own.work)(own.count * i / own.parts, own.count * (i + 1) / own.parts);
    } catch (...) {  // a thread of ONNX Runtime must not see it; only memory can be missing here
      own.failed.store(true, std::memory_order_relaxed);
    }
  };
  check(api().parallel_for(context_, run, static_cast<size_t>(parts), 0, &section));
  if (section.failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

// Give each output of any type the type and shape of the input that it names.
void infer_types(const Port* outputs, size_t count, const OrtShapeInferContext* context);

// Turn what an operator throws into a status.
template <class Work>
OrtStatus* guarded(const std::string& where, const Work& work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const Failure& failure) {
    return api().create_status(ErrorCode::invalid_argument, failure.what());
  } catch (const std::bad_alloc&) {
    return api().create_status(ErrorCode::fail, (where + ": not enough memory for the intermediate results").c_str());
  } catch (const std::exception& error) {
    return api().create_status(ErrorCode::fail, error.what());
  }
}

// The description of an operator, as ONNX Runtime reads it.
template <class Operator>
struct Description : OrtCustomOp {
  struct Kernel {
    explicit Kernel(const Attributes& attributes) : where(attributes.where()), op(attributes) {}
    std::string where;
    Operator op;
  };

  Description() : OrtCustomOp() {
    version = kApiVersion;
    get_name = [](const OrtCustomOp*) { return Operator::kName; };
    get_execution_provider = [](const OrtCustomOp*) -> const char* { return nullptr; };
    get_input_count = [](const OrtCustomOp*) { return std::size(Operator::kInputs); };
    get_output_count = [](const OrtCustomOp*) { return std::size(Operator::kOutputs); };
    get_input_type = [](const OrtCustomOp*, size_t index) { return Operator::kInputs[index].type; };
    get_output_type = [](const OrtCustomOp*, size_t index) { return Operator::kOutputs[index].type; };
    get_input_presence = [](const OrtCustomOp*, size_t index) { return Operator::kInputs[index].presence; };
    get_output_presence = [](const OrtCustomOp*, size_t index) { return Operator::kOutputs[index].presence; };
    get_input_memory_type = [](const OrtCustomOp*, size_t) { return MemoryType::on_device; };
    get_variadic_input_least = get_variadic_input_homogeneous = [](const OrtCustomOp*) { return 0; };
    get_variadic_output_least = get_variadic_output_homogeneous = [](const OrtCustomOp*) { return 0; };
    get_start_version = get_end_version = [](const OrtCustomOp*) { return kVersion; };
    if (std::any_of(std::begin(Operator::kOutputs), std::end(Operator::kOutputs),
                    [](const Port& port) { return port.type == Element::any; })) {
      infer_output_shape = [](const OrtCustomOp*, OrtShapeInferContext* context) {
        return guarded(Operator::kName,
                       [&] { infer_types(std::data(Operator::kOutputs), std::size(Operator::kOutputs), context); });
      };
    }
    create_kernel_v2 = [](const OrtCustomOp*, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return guarded(Operator::kName, [&] { *kernel = new Kernel(Attributes(Operator::kName, info)); });
    };
    compute_v2 = [](void* kernel, OrtKernelContext* context) {
      const auto& own = *static_cast<const Kernel*>(kernel);
      return guarded(own.where, [&] {
        Call call(own.where, std::data(Operator::kInputs), std::data(Operator::kOutputs), context);
        own.op.run(call);
      });
    };
    destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  }
};

// The operators of the library, in any order.
std::vector<const OrtCustomOp*>& operators();

template <class Operator>
struct Registration {
  Registration() { operators().push_back(&description); }
  Description<Operator> description;
};

}  // namespace adaptive
