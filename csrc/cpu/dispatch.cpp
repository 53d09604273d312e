#include "cpu/dispatch.h"

#include <atomic>
#include <string_view>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace wae {
namespace {

std::atomic<bool> uses_amx{true};

#if defined(__x86_64__)
// Whether the CPU has AVX-VNNI, whose name clang's __builtin_cpu_supports knows only from version 19 on.
bool has_avxvnni() {
  static const bool has = [] {
    constexpr unsigned kAvxVnni = 1u << 4;
    unsigned last_subleaf, eax, ebx, ecx, edx;
    return __get_cpuid_count(7, 0, &last_subleaf, &ebx, &ecx, &edx) && last_subleaf >= 1 &&
           __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni) != 0;
  }();
  return has;
}
#endif

// Whether the CPU has AMX for int8, and Linux lets this process use the tile registers. They make a signal frame 8 KB
// larger, so a process has to request them, and Linux refuses if the signal stack of a thread is too small. They are
// requested when an int8 encoder is first looked for.
bool amx_works() {
#if defined(__x86_64__) && defined(__linux__)
  static const bool works = [] {
    constexpr unsigned kTile = 1u << 24, kInt8 = 1u << 25;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned eax, ebx, ecx, edx;
    const bool has = __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kTile) && (edx & kInt8);
    return has && syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
  }();
  return works;
#else
  return false;
#endif
}

struct Capability {
  std::string_view name;
  bool (*supported)();
  const Kernels& (*kernels)();
  EncodeInt8* (*int8)();
};

// Best first.
constexpr Capability kCapabilities[] = {
#if defined(__x86_64__)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     },
     kernels_avx512,
     [] {
       if (!__builtin_cpu_supports("avx512vnni")) return static_cast<EncodeInt8*>(nullptr);
       return uses_amx && amx_works() ? avx512amx::encode_int8 : avx512vnni::encode_int8;
     }},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }, kernels_avx2,
     [] { return has_avxvnni() ? avxvnni::encode_int8 : nullptr; }},
#endif
    {"portable", [] { return true; }, kernels_portable, []() -> EncodeInt8* { return nullptr; }},
};

// The kernels of this name; null for the reference, an unknown name, or kernels that this CPU cannot run.
const Kernels* kernels_named(std::string_view name) {
  const bool best = name == "auto" || name == "cpu";
  for (const Capability& known : kCapabilities) {
    if ((best || known.name == name) && known.supported()) return &known.kernels();
  }
  return nullptr;
}

std::atomic<const Kernels*>& selection() {
  static std::atomic<const Kernels*> selected{kernels_named("auto")};
  return selected;
}

std::atomic<wae_cpu_callback> callback{nullptr};

}  // namespace

const Kernels* selected_kernels() {
  if (const wae_cpu_callback ask = callback) return static_cast<const Kernels*>(ask());
  return selection().load(std::memory_order_relaxed);
}

EncodeInt8* int8_encoder(const Kernels* kernels) {
  for (const Capability& known : kCapabilities) {
    if (kernels != nullptr && known.supported() && &known.kernels() == kernels) return known.int8();
  }
  return nullptr;
}

}  // namespace wae

int wae_cpu_supports(const char* capability) {
  for (const wae::Capability& known : wae::kCapabilities) {
    if (known.name == capability) return known.supported();
  }
  return 0;
}

const void* wae_cpu_kernels(const char* name) { return wae::kernels_named(name); }

int wae_cpu_int8() { return wae::int8_encoder(wae::selected_kernels()) != nullptr; }

int wae_cpu_amx(int use) {
  wae::uses_amx = use != 0;
  return use && wae_cpu_int8() && wae::selected_kernels() == wae::kernels_named("avx512") && wae::amx_works();
}

void wae_cpu_select(const char* name) { wae::selection() = wae::kernels_named(name); }

void wae_cpu_ask(wae_cpu_callback ask) { wae::callback = ask; }
