// Runs every kernel of the named table on numbers of its own and prints a digest of the bits of each result.
//
// test_arm64.py compiles it for two processors and compares what they print, line by line.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

extern "C" {
int adaptive_ops_has(const char*);
void adaptive_ops_multiply(const char*, int64_t, int64_t, int64_t, const uint8_t*, const float*, int64_t, float*, int64_t,
                           int64_t, const int32_t*, int64_t);
void adaptive_ops_quantize(const char*, const float*, int64_t, int8_t*, float*, int32_t*);
void adaptive_ops_matrix_row(const char*, int64_t, int64_t, int64_t, const uint8_t*, int64_t, float*);
void adaptive_ops_rms_norm(const char*, const float*, const float*, float, float*, int64_t);
void adaptive_ops_layer_norm(const char*, const float*, const float*, const float*, float, float*, int64_t);
void adaptive_ops_softcap(const char*, float*, float, int64_t);
void adaptive_ops_rotate(const char*, float*, const float*, const float*, int64_t);
float adaptive_ops_dot(const char*, const float*, const float*, int64_t);
void adaptive_ops_add_scaled(const char*, float*, const float*, float, int64_t);
void adaptive_ops_activate(const char*, int64_t, const float*, const float*, float, float*, int64_t);
void adaptive_ops_sigmoid(const char*, float*, int64_t);
void adaptive_ops_exponential(const char*, float*, float, int64_t);
float adaptive_ops_softmax(const char*, float*, int64_t);
void adaptive_ops_attend(const char*, int64_t, int64_t, int64_t, int64_t, int64_t, const float*, const float*, const float*,
                         const float*, const float*, int64_t, float, float*);
void adaptive_ops_recur(const char*, int64_t, int64_t, int64_t, int64_t, float*, const float*, const float*, const float*,
                        const float*, const float*, const float*, float*);
void adaptive_ops_convolve(const char*, int64_t, int64_t, int64_t, int64_t, const float*, const float*, float*, float*,
                           int64_t, int64_t);
}

namespace {

uint64_t state;

uint32_t random_bits() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<uint32_t>(state >> 33);
}

std::vector<float> random_floats(int64_t n, float scale) {
  std::vector<float> values(n);
  for (float& value : values) value = (static_cast<float>(random_bits() & 0xFFFFFF) / 8388608.0f - 1.0f) * scale;
  return values;
}

void print(const char* kernel, int64_t a, int64_t b, const void* data, size_t bytes) {
  uint64_t digest = 14695981039346656037u;
  for (size_t i = 0; i < bytes; i++) digest = (digest ^ static_cast<const uint8_t*>(data)[i]) * 1099511628211u;
  std::printf("%s %d %d %016llx\n", kernel, static_cast<int>(a), static_cast<int>(b),
              static_cast<unsigned long long>(digest));
}

// The bytes of a packed matrix with any codes and ordinary scales.
std::vector<uint8_t> random_matrix(int64_t precision, int64_t outputs, int64_t inputs) {
  const int64_t blocks = (outputs + 63) / 64 * ((inputs + 31) / 32);
  const int64_t bytes[] = {8192, 4096, 2176, 1216};
  std::vector<uint8_t> data(blocks * bytes[precision]);
  for (int64_t b = 0; b < blocks; b++) {
    uint8_t* block = data.data() + b * bytes[precision];
    if (precision < 2) {
      const std::vector<float> values = random_floats(2048, 1.0f);
      for (int64_t i = 0; i < 2048; i++) {
        if (precision == 0) std::memcpy(block + 4 * i, &values[i], 4);
        if (precision == 1) std::memcpy(block + 2 * i, reinterpret_cast<const char*>(&values[i]) + 2, 2);
      }
      continue;
    }
    for (int64_t i = 0; i < bytes[precision]; i++) block[i] = static_cast<uint8_t>(random_bits() % 255 + 1);
    for (int64_t i = 0; i < 64; i++) {
      const uint16_t scale = static_cast<uint16_t>(random_bits() % 0x2800);  // float16 from 0 over denormals to 0.03
      std::memcpy(block + 2 * i, &scale, 2);
    }
  }
  return data;
}

void products(const char* name, int64_t precision, int64_t outputs, int64_t inputs, int64_t rows, float scale) {
  const std::vector<uint8_t> data = random_matrix(precision, outputs, inputs);
  const int64_t blocks = (inputs + 31) / 32, groups = (outputs + 63) / 64;
  const std::vector<float> values = random_floats(rows * blocks * 32, scale);
  std::vector<float> out(rows * outputs);
  adaptive_ops_multiply(name, precision, outputs, inputs, data.data(), values.data(), rows, out.data(), 0, groups,
                        nullptr, 0);
  print("multiply", precision, outputs, out.data(), 4 * out.size());
  const int32_t last = static_cast<int32_t>(blocks - 1);
  adaptive_ops_multiply(name, precision, outputs, inputs, data.data(), values.data(), rows, out.data(), 0, groups, &last,
                        1);
  print("multiply_last_block", precision, outputs, out.data(), 4 * out.size());
  std::vector<float> row(inputs);
  adaptive_ops_matrix_row(name, precision, outputs, inputs, data.data(), outputs - 1, row.data());
  print("matrix_row", precision, outputs, row.data(), 4 * row.size());
}

void vectors(const char* name, int64_t n, float scale) {
  std::vector<float> a = random_floats(n, scale), b = random_floats(n, 1.0f), head = random_floats(2 * n, scale), out(n);
  const float dot = adaptive_ops_dot(name, a.data(), b.data(), n);
  print("dot", n, 0, &dot, 4);
  adaptive_ops_rms_norm(name, a.data(), b.data(), 1e-5f, out.data(), n);
  print("rms_norm", n, 0, out.data(), 4 * n);
  adaptive_ops_layer_norm(name, a.data(), b.data(), head.data(), 1e-5f, out.data(), n);
  print("layer_norm", n, 0, out.data(), 4 * n);
  adaptive_ops_softcap(name, out.data(), 0.9f, n);
  print("softcap", n, 0, out.data(), 4 * n);
  adaptive_ops_rotate(name, head.data(), b.data(), b.data(), 2 * n);
  print("rotate", n, 0, head.data(), 8 * n);
  for (int64_t activation = 0; activation < 4; ++activation) {
    adaptive_ops_activate(name, activation, a.data(), b.data(), 0.7f, out.data(), n);
    print("activate", n, activation, out.data(), 4 * n);
    adaptive_ops_activate(name, activation, a.data(), nullptr, 0.7f, out.data(), n);
    print("activate_alone", n, activation, out.data(), 4 * n);
  }
  adaptive_ops_add_scaled(name, out.data(), a.data(), 0.3f, n);
  print("add_scaled", n, 0, out.data(), 4 * n);
  adaptive_ops_sigmoid(name, out.data(), n);
  print("sigmoid", n, 0, out.data(), 4 * n);
  adaptive_ops_exponential(name, out.data(), -0.6f, n);
  print("exponential", n, 0, out.data(), 4 * n);
  const float sum = adaptive_ops_softmax(name, a.data(), n);
  print("softmax", n, 0, a.data(), 4 * n);
  print("softmax_sum", n, 0, &sum, 4);
  std::vector<float> row = random_floats((n + 31) / 32 * 32, scale), scales(row.size() / 32);
  std::vector<int8_t> codes(row.size());
  std::vector<int32_t> sums(scales.size());
  adaptive_ops_quantize(name, row.data(), static_cast<int64_t>(row.size()), codes.data(), scales.data(), sums.data());
  print("quantize_codes", n, 0, codes.data(), codes.size());
  print("quantize_scales", n, 0, scales.data(), 4 * scales.size());
  print("quantize_sums", n, 0, sums.data(), 4 * sums.size());
}

void attention(const char* name, int64_t type, int64_t head_dim, int64_t capacity, int64_t window, float scale) {
  const int64_t tokens = 2 * capacity + 3, n = tokens * head_dim, positions = 9;
  const std::vector<float> keys = random_floats(n, scale), values = random_floats(n, scale);
  const std::vector<float> queries = random_floats(n, 1.0f), embedding = random_floats(16 * head_dim, 1.0f);
  std::vector<float> out(n), counted(tokens);
  for (float& one : counted) one = static_cast<float>(random_bits() % 2);
  adaptive_ops_attend(name, type, head_dim, capacity, tokens, window, keys.data(), values.data(), queries.data(), nullptr,
                      nullptr, 0, 0, out.data());
  print("attend", type, head_dim, out.data(), 4 * out.size());
  adaptive_ops_attend(name, type, head_dim, capacity, tokens, window, keys.data(), values.data(), queries.data(),
                      counted.data(), embedding.data(), positions, 0, out.data());
  print("attend_cope", type, head_dim, out.data(), 4 * out.size());
  adaptive_ops_attend(name, type, head_dim, capacity, tokens, window, keys.data(), values.data(), queries.data(),
                      counted.data(), embedding.data(), positions, 2.5f, out.data());
  print("attend_softcap", type, head_dim, out.data(), 4 * out.size());
}

void mixers(const char* name, int64_t width, float scale) {
  const int64_t tokens = 5, n = tokens * width;
  std::vector<float> w = random_floats(n, 1.0f), k = random_floats(n, 1.0f), r = random_floats(n, 1.0f);
  std::vector<float> a = random_floats(n, 0.2f), b = random_floats(n, 0.2f), v = random_floats(n, scale), out(n);
  for (float& one : w) one = one * one;
  std::vector<float> state = random_floats(width * width, scale);
  adaptive_ops_recur(name, width, width, tokens, 2, state.data(), w.data(), k.data(), r.data(), nullptr, nullptr, v.data(),
                     out.data());
  print("recur", width, 0, out.data(), 4 * n);
  adaptive_ops_recur(name, width, width, tokens, 2, state.data(), w.data(), k.data(), r.data(), a.data(), b.data(),
                     v.data(), out.data());
  print("recur_delta", width, 0, out.data(), 4 * n);
  print("recur_state", width, 0, state.data(), 4 * state.size());
  for (int64_t seen = 1; seen <= 8; seen++) {
    std::vector<float> rows = v, kept = random_floats(width * (seen - 1), scale);
    const std::vector<float> weight = random_floats(width * seen, 1.0f);
    adaptive_ops_convolve(name, width, seen, tokens, 3, weight.data(), a.data(), kept.data(), rows.data(), 0, width);
    print("convolve", width, seen, rows.data(), 4 * n);
    print("convolve_state", width, seen, kept.data(), 4 * kept.size());
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2 || !adaptive_ops_has(argv[1])) return 2;
  state = 11;
  for (int64_t precision = 0; precision < 4; precision++)
    for (float scale : {1.0f, 1e30f, 1e-38f}) {
      products(argv[1], precision, 130, 96, 7, scale);
      products(argv[1], precision, 1, 33, 1, scale);
      products(argv[1], precision, 65, 1, 3, scale);
    }
  for (int64_t n : {1, 15, 16, 17, 64, 100, 129, 512})
    for (float scale : {1.0f, 40.0f, 1e30f, 1e-38f}) vectors(argv[1], n, scale);
  for (int64_t width : {5, 16, 80, 130})
    for (float scale : {1.0f, 1e-3f, 1e4f}) mixers(argv[1], width, scale);
  for (int64_t type = 0; type < 3; type++)
    for (int64_t head_dim : {5, 16, 80})
      for (float scale : {1.0f, 1e-3f, 1e4f}) {
        attention(argv[1], type, head_dim, 7, 5, scale);
        attention(argv[1], type, head_dim, 33, 33, scale);
      }
}
