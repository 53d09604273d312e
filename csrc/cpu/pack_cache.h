// A cache of the packed weights of the last few networks. Its key is the values of the weights.
//
// Addresses or version counters would not do as keys: they do not change when someone writes through `.data`, and an
// address is reused after a tensor is freed. Comparing 6,000 numbers takes less than a microsecond and cannot be wrong.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <list>
#include <memory>
#include <mutex>

#include "cpu/pack.h"
#include "cpu/sums.h"

namespace wae {

// The sizes of the raw weights, in the order of the structs of pointers.
template <class Weights>
inline constexpr std::array<int, 10> kWeightSizes{};
template <>
inline constexpr std::array<int, 10> kWeightSizes<EncoderWeights>{432, 16,  2304, 16,  2304,
                                                                  16,  432, 3,    432, 3};
template <>
inline constexpr std::array<int, 10> kWeightSizes<DecoderWeights>{432, 16,   432, 16,  2304,
                                                                  16,  2304, 16,  432, 3};
template <>
inline constexpr std::array<int, 10> kWeightSizes<EncoderGradients> = kWeightSizes<EncoderWeights>;
template <>
inline constexpr std::array<int, 10> kWeightSizes<DecoderGradients> = kWeightSizes<DecoderWeights>;

template <class Weights>
constexpr int count_weights() {
  int sum = 0;
  for (int size : kWeightSizes<Weights>) sum += size;
  return sum;
}

// All raw weights, or all gradients of them, concatenated.
template <class Weights>
struct WeightNumbers : std::array<float, count_weights<Weights>()> {};

// The struct of pointers to the tensors in such numbers.
template <class Pointers, class Number>
Pointers weights_in(Number* numbers) {
  std::array<Number*, 10> pointers;
  for (int i = 0; i < 10; ++i) {
    pointers[i] = numbers;
    numbers += kWeightSizes<Pointers>[i];
  }
  static_assert(sizeof(Pointers) == sizeof pointers);
  Pointers weights;
  std::memcpy(&weights, pointers.data(), sizeof weights);
  return weights;
}

template <class Pack, class Weights>
void pack(Pack& packed, const WeightNumbers<Weights>& numbers) {
  pack(packed, weights_in<Weights>(numbers.data()));
}

// The lock of all caches. A fork waits until it is free, because no thread of the child could release it.
inline std::mutex& cache_lock() {
  static std::mutex lock;
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  return lock;
}

template <class Pack, class Numbers>
class PackCache {
 public:
  // The pack of the cached numbers for which `same` is true; if there are none, a new pack of the numbers that `make`
  // returns. `same` must compare bytes, so that NaN equals itself and -0 differs from 0.
  //
  // Thread-safe. The result stays valid as long as it is held, whatever happens to the cache.
  template <class Same, class Make>
  std::shared_ptr<const Pack> find(const Same& same, const Make& make) {
    const std::lock_guard lock(cache_lock());
    auto entry = std::find_if(entries_.begin(), entries_.end(),
                              [&](const std::shared_ptr<Entry>& known) { return same(known->numbers); });
    if (entry == entries_.end()) {
      auto fresh = std::make_shared<Entry>();
      fresh->numbers = make();
      pack(fresh->pack, fresh->numbers);
      if (entries_.size() == kEntries) entries_.pop_back();
      entries_.push_front(std::move(fresh));
    } else {
      entries_.splice(entries_.begin(), entries_, entry);
    }
    return {entries_.front(), &entries_.front()->pack};
  }

 private:
  static constexpr size_t kEntries = 4;
  struct Entry {
    Pack pack;
    Numbers numbers;
  };
  std::list<std::shared_ptr<Entry>> entries_;  // most recently used first
};

}  // namespace wae
