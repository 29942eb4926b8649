// The part of ONNX Runtime's C ABI that our operators use, declared by ourselves.
//
// ONNX Runtime hands a library one table of function pointers, OrtApi. Entries are only ever appended to it, so an
// entry is known by its position and signature. `Api` names those that are used. The table is asked for by the version
// in which the newest of them appeared; a runtime that is older returns none, and the library is refused.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define ORT_CALL __stdcall
#define ADAPTIVE_EXPORT extern "C" __declspec(dllexport)
#else
#define ORT_CALL
#define ADAPTIVE_EXPORT extern "C" __attribute__((visibility("default")))
#endif

// Objects of ONNX Runtime. They are only passed around as pointers.
struct OrtStatus;  // an error; a null pointer means success
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtCustomOp;

struct OrtApi {
  const void* entries[1];  // as many as the version has
};

struct OrtApiBase {
  const OrtApi*(ORT_CALL* get_api)(uint32_t version);  // null if the runtime is older than `version`
  const char*(ORT_CALL* get_version_string)();
};

namespace adaptive {

// ONNX Runtime 1.24, which added the newest entry that is used (414).
constexpr uint32_t kApiVersion = 24;

enum class Element : int32_t {  // ONNXTensorElementDataType
  any = 0,
  float32 = 1,
  uint8 = 2,
  int8 = 3,
  int32 = 6,
  int64 = 7,
  boolean = 9,
  float16 = 10,
  float64 = 11,
};

enum class ErrorCode : int32_t { fail = 1, invalid_argument = 2 };  // OrtErrorCode

enum class Presence : int32_t { required = 0, optional = 1, variadic = 2 };  // OrtCustomOpInputOutputCharacteristic

enum class MemoryType : int32_t { on_device = 0 };  // OrtMemType

class Api {
  template <size_t position, class Result, class... Arguments>
  auto entry() const {
    using Function = Result(ORT_CALL*)(Arguments...);
    return reinterpret_cast<Function>(const_cast<void*>(table_->entries[position]));
  }

 public:
  explicit Api(const OrtApi* table = nullptr) : table_(table) {}
  explicit operator bool() const { return table_ != nullptr; }

  // Create an error with a copy of the message.
  OrtStatus* create_status(ErrorCode code, const char* message) const {
    return entry<0, OrtStatus*, ErrorCode, const char*>()(code, message);
  }
  // Return the message of an error, which owns it.
  const char* error_message(const OrtStatus* status) const { return entry<2, const char*, const OrtStatus*>()(status); }
  void release_status(OrtStatus* status) const { entry<93, void, OrtStatus*>()(status); }

  // Create a domain of operators. It has to live as long as every session that uses it.
  OrtStatus* create_domain(const char* name, OrtCustomOpDomain** domain) const {
    return entry<26, OrtStatus*, const char*, OrtCustomOpDomain**>()(name, domain);
  }
  OrtStatus* add_operator(OrtCustomOpDomain* domain, const OrtCustomOp* op) const {
    return entry<27, OrtStatus*, OrtCustomOpDomain*, const OrtCustomOp*>()(domain, op);
  }
  OrtStatus* add_domain(OrtSessionOptions* options, OrtCustomOpDomain* domain) const {
    return entry<28, OrtStatus*, OrtSessionOptions*, OrtCustomOpDomain*>()(options, domain);
  }

  // Read an attribute of a node. An error means that it is absent or of another type.
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, float* value) const {
    return entry<85, OrtStatus*, const OrtKernelInfo*, const char*, float*>()(info, name, value);
  }
  OrtStatus* attribute(const OrtKernelInfo* info, const char* name, int64_t* value) const {
    return entry<86, OrtStatus*, const OrtKernelInfo*, const char*, int64_t*>()(info, name, value);
  }
  // Read the name of a node. `size` is the size of `name` and becomes that of the text, its end (a zero) included.
  OrtStatus* node_name(const OrtKernelInfo* info, char* name, size_t* size) const {
    return entry<244, OrtStatus*, const OrtKernelInfo*, char*, size_t*>()(info, name, size);
  }

  // Count the inputs that a node names, absent ones in the middle included.
  OrtStatus* input_count(const OrtKernelContext* context, size_t* count) const {
    return entry<88, OrtStatus*, const OrtKernelContext*, size_t*>()(context, count);
  }
  OrtStatus* output_count(const OrtKernelContext* context, size_t* count) const {
    return entry<89, OrtStatus*, const OrtKernelContext*, size_t*>()(context, count);
  }
  // Return an input; null if it is absent.
  OrtStatus* input(const OrtKernelContext* context, size_t index, const OrtValue** value) const {
    return entry<90, OrtStatus*, const OrtKernelContext*, size_t, const OrtValue**>()(context, index, value);
  }
  // Allocate an output of the given shape, or take the buffer that the caller bound to it; null if it is not wanted.
  OrtStatus* output(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                    OrtValue** value) const {
    return entry<91, OrtStatus*, OrtKernelContext*, size_t, const int64_t*, size_t, OrtValue**>()(
        context, index, shape, rank, value);
  }
  // Return the elements of a tensor.
  OrtStatus* data(OrtValue* value, void** data) const {
    return entry<51, OrtStatus*, OrtValue*, void**>()(value, data);
  }
  // Return the element type and shape of a tensor. The shape belongs to the value; it is null for a scalar.
  OrtStatus* type_and_shape(const OrtValue* value, Element* type, const int64_t** shape, size_t* rank) const {
    return entry<414, OrtStatus*, const OrtValue*, Element*, const int64_t**, size_t*>()(value, type, shape, rank);
  }

  // Return element type and shape of an input while the graph is built; the context owns them.
  OrtStatus* inferred_input(const OrtShapeInferContext* context, size_t index, OrtTensorTypeAndShapeInfo** info) const {
    return entry<268, OrtStatus*, const OrtShapeInferContext*, size_t, OrtTensorTypeAndShapeInfo**>()(context, index,
                                                                                                      info);
  }
  // State element type and shape of an output while the graph is built; they are copied.
  OrtStatus* infer_output(const OrtShapeInferContext* context, size_t index,
                          const OrtTensorTypeAndShapeInfo* info) const {
    return entry<270, OrtStatus*, const OrtShapeInferContext*, size_t, const OrtTensorTypeAndShapeInfo*>()(
        context, index, info);
  }

  // Call work(data, i) for every i below `total` on the threads of the session. With `batches` 0 each i is handed out
  // on its own; else the numbers are cut into that many contiguous parts. A session with one thread runs a plain loop.
  OrtStatus* parallel_for(const OrtKernelContext* context, void (*work)(void*, size_t), size_t total, size_t batches,
                          void* data) const {
    return entry<274, OrtStatus*, const OrtKernelContext*, void (*)(void*, size_t), size_t, size_t, void*>()(
        context, work, total, batches, data);
  }

 private:
  const OrtApi* table_;
};

}  // namespace adaptive

// The description of an operator. ONNX Runtime reads the fields up to those of `version`.
struct OrtCustomOp {
  uint32_t version;  // of the ABI that the operator was written for

  void*(ORT_CALL* create_kernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);  // unused: see the second
  const char*(ORT_CALL* get_name)(const OrtCustomOp*);
  const char*(ORT_CALL* get_execution_provider)(const OrtCustomOp*);  // null: the CPU provider

  adaptive::Element(ORT_CALL* get_input_type)(const OrtCustomOp*, size_t index);
  size_t(ORT_CALL* get_input_count)(const OrtCustomOp*);
  adaptive::Element(ORT_CALL* get_output_type)(const OrtCustomOp*, size_t index);
  size_t(ORT_CALL* get_output_count)(const OrtCustomOp*);

  void(ORT_CALL* compute)(void* kernel, OrtKernelContext*);  // unused: see the second
  void(ORT_CALL* destroy_kernel)(void* kernel);

  adaptive::Presence(ORT_CALL* get_input_presence)(const OrtCustomOp*, size_t index);
  adaptive::Presence(ORT_CALL* get_output_presence)(const OrtCustomOp*, size_t index);
  adaptive::MemoryType(ORT_CALL* get_input_memory_type)(const OrtCustomOp*, size_t index);

  int(ORT_CALL* get_variadic_input_least)(const OrtCustomOp*);
  int(ORT_CALL* get_variadic_input_homogeneous)(const OrtCustomOp*);
  int(ORT_CALL* get_variadic_output_least)(const OrtCustomOp*);
  int(ORT_CALL* get_variadic_output_homogeneous)(const OrtCustomOp*);

  // These two replace the ones above. They return an error, and none may be thrown through ONNX Runtime.
  OrtStatus*(ORT_CALL* create_kernel_v2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void** kernel);
  OrtStatus*(ORT_CALL* compute_v2)(void* kernel, OrtKernelContext*);

  OrtStatus*(ORT_CALL* infer_output_shape)(const OrtCustomOp*, OrtShapeInferContext*);  // null: shapes are not inferred
  int(ORT_CALL* get_start_version)(const OrtCustomOp*);
  int(ORT_CALL* get_end_version)(const OrtCustomOp*);

  // Pairs of an input and the output that may (the first) or must (the second) share its buffer; null: no pairs.
  size_t(ORT_CALL* get_may_inplace)(int** inputs, int** outputs);
  void(ORT_CALL* release_may_inplace)(int* inputs, int* outputs);
  size_t(ORT_CALL* get_alias_map)(int** inputs, int** outputs);
  void(ORT_CALL* release_alias_map)(int* inputs, int* outputs);
};
