// Memory for the intermediate results of one execution of an operator.
//
// Each thread has its own arena, so that several runs of one session do not meet. Memory is taken by moving a pointer
// and given back when the scope ends. Once the arena has grown to what a pass needs, a pass allocates nothing.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <vector>

namespace adaptive {

constexpr int64_t kAlignment = 64;
constexpr int64_t kLargest = int64_t{1} << 40;  // values of one piece of memory; a larger count is a fault

class Arena {
 public:
  static Arena& of_this_thread() {
    static thread_local Arena arena;
    return arena;
  }

  void* take(int64_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    add(bytes);  // a block for each piece, so that AddressSanitizer sees where it ends
#else
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    if (blocks_.empty() || used_ + bytes > capacity_) add(std::max({bytes, 2 * capacity_, kLeast}));
#endif
    void* result = blocks_.back().get() + used_;
    used_ += bytes;
    return result;
  }

 private:
  friend class Scratch;
  static constexpr int64_t kLeast = 1 << 16;
  static constexpr int64_t kMost = 1 << 24;  // what a thread keeps between passes; a long prompt may take more

  struct Free {
    void operator()(uint8_t* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };

  void add(int64_t size) {
    auto* memory = ::operator new(static_cast<size_t>(size), std::align_val_t(kAlignment));
    blocks_.emplace_back(static_cast<uint8_t*>(memory));
    total_ += size;
    capacity_ = size;
    used_ = 0;
  }

  // At the end of the outermost scope: join several blocks, so that the next pass finds one that is large enough.
  void settle() {
    used_ = 0;
    if (blocks_.size() < 2 && total_ <= kMost) return;
    const int64_t total = std::min(total_, kMost);
    blocks_.clear();
    total_ = capacity_ = 0;
    add(total);
  }

  std::vector<std::unique_ptr<uint8_t, Free>> blocks_;
  int64_t total_ = 0, capacity_ = 0, used_ = 0;  // bytes: of all blocks, of the last block, taken of the last block
  int depth_ = 0;
};

// A scope: what was taken from the arena inside it is given back at its end.
class Scratch {
 public:
  Scratch() : arena_(Arena::of_this_thread()), blocks_(arena_.blocks_.size()), used_(arena_.used_) { ++arena_.depth_; }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    if (arena_.blocks_.size() == blocks_) arena_.used_ = used_;  // else the older blocks stay full until the end
    if (--arena_.depth_ > 0) return;
    try {
      arena_.settle();
    } catch (const std::bad_alloc&) {  // the next pass allocates what it needs
    }
  }

  // Return memory for `count` values, aligned to 64 bytes, with undefined contents.
  template <class T>
  T* take(int64_t count) {
    if (count < 0 || count > kLargest) throw std::bad_alloc();
    return static_cast<T*>(arena_.take(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class T>
  T* zeros(int64_t count) {
    T* memory = take<T>(count);
    if (count > 0) std::memset(static_cast<void*>(memory), 0, static_cast<size_t>(count) * sizeof(T));
    return memory;
  }

 private:
  Arena& arena_;
  size_t blocks_;
  int64_t used_;
};

}  // namespace adaptive
