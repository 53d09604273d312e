#include "cpu/dispatch.h"

#include <atomic>
#include <string_view>

namespace wae {
namespace {

struct Capability {
  std::string_view name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

// Best first.
constexpr Capability kCapabilities[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     kernels_avx512},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, kernels_avx2},
#endif
    {"portable", [] { return true; }, kernels_portable},
};

const Kernels* best_kernels() {
  for (const Capability& capability : kCapabilities) {
    if (capability.supported()) return &capability.kernels();
  }
  return nullptr;
}

std::atomic<const Kernels*>& selection() {
  static std::atomic<const Kernels*> selected{best_kernels()};
  return selected;
}

}  // namespace

const Kernels* selected_kernels() { return selection().load(std::memory_order_relaxed); }

}  // namespace wae

int wae_cpu_supports(const char* capability) {
  for (const wae::Capability& known : wae::kCapabilities) {
    if (known.name == capability) return known.supported();
  }
  return 0;
}

int wae_cpu_select(const char* name) {
  const std::string_view wanted = name;
  if (wanted == "auto" || wanted == "cpu") {
    wae::selection() = wae::best_kernels();
    return 0;
  }
  if (wanted == "reference") {
    wae::selection() = nullptr;
    return 0;
  }
  for (const wae::Capability& known : wae::kCapabilities) {
    if (known.name == wanted && known.supported()) {
      wae::selection() = &known.kernels();
      return 0;
    }
  }
  return -1;
}
