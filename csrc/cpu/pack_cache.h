// A cache of the packed weights of the last few networks. Its key is the values of the weights.
//
// Addresses or version counters would not do as keys: they do not change when someone writes through `.data`, and an
// address is reused after a tensor is freed. Comparing 6,000 numbers takes less than a microsecond and cannot be wrong.

#pragma once

#include <pthread.h>

#include <algorithm>
#include <cstddef>
#include <list>
#include <memory>
#include <mutex>
#include <utility>

namespace wae {

// The lock of all caches. A fork waits until it is free, because no thread of the child could release it.
inline std::mutex& cache_lock() {
  static std::mutex lock;
  [[maybe_unused]] static const int registered =
      pthread_atfork([] { lock.lock(); }, [] { lock.unlock(); }, [] { lock.unlock(); });
  return lock;
}

template <class Pack>
class PackCache {
 public:
  using Weights = typename Pack::Weights;

  // The pack of the cached weights for which `same` is true; if there are none, a new pack of the weights that `make`
  // returns. `same` must compare bytes, so that NaN equals itself and -0 differs from 0.
  //
  // Thread-safe. The result stays valid as long as it is held, whatever happens to the cache.
  template <class Same, class Make>
  std::shared_ptr<const Pack> find(const Same& same, const Make& make) {
    const std::lock_guard lock(cache_lock());
    auto entry = std::find_if(entries_.begin(), entries_.end(),
                              [&](const std::shared_ptr<Entry>& known) { return same(known->weights); });
    if (entry == entries_.end()) {
      auto fresh = std::make_shared<Entry>();
      fresh->weights = make();
      pack(fresh->pack, fresh->weights);
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
    Weights weights;
  };
  std::list<std::shared_ptr<Entry>> entries_;  // most recently used first
};

}  // namespace wae
